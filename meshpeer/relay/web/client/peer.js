// The public faces of the others in the room: `Peer`, `Message` and `Channel`. The same as meshpeer's
// peer.py.

import {
  ChannelClosed,
  ConfigError,
  InvalidData,
  MAX_CHANNEL,
  MessageTooLarge,
  OVERHEAD,
  PeerClosed,
  RESERVED,
  Role,
  UsageError,
  encodeMessage,
  encodeValue,
  repr,
  typeName,
  utf8Length,
} from "./codec.js";
import { Bell, ItemStream } from "./streams.js";

/** @import { Metadata, RoleValue, UndeliveredMessage } from "./codec.js" */
/** @import { Outgoing } from "./delivery.js" */
/** @import { FileProgress, FileSent } from "./files.js" */
/** @import { Path, PeerState } from "./node.js" */

/** Bytes of the largest message on a plain channel: what every endpoint takes (RFC 8841). */
export const MAX_PLAIN = 65_536;

/**
 * A plain data channel, as the connection gives it.
 * @typedef {object} RawChannel
 * @property {string} label
 * @property {string} state
 * @property {number} bufferedAmount
 * @property {boolean} lossy  whether it may lose messages
 * @property {(data: string | Uint8Array) => void} send
 * @property {() => void} close
 * @property {(handlers: {onOpen: () => void, onMessage: (data: string | Uint8Array) => void,
 *   onLow: () => void, onClose: () => void, low: number}) => void} listen
 */

/**
 * What a plain channel is opened with. `maxPacketLifeTime` is in milliseconds.
 * @typedef {{ordered: boolean, maxRetransmits: number | null, maxPacketLifeTime: number | null}} ChannelOptions
 */

/**
 * A round trip to a peer, or why there was none. `rtt` is in seconds.
 * @typedef {{kind: "PathTest", peerId: string, path: Path | null, rtt: number | null, error: string | null}} PathTest
 */

/**
 * What a `Peer` needs of its manager.
 * @typedef {object} PeerHost
 * @property {number} maxMessageSize
 * @property {() => void} checkRunning  throws `MeshClosed` when it is closed, or is to be
 * @property {(peer: Peer) => PeerState} stateOf
 * @property {(peer: Peer) => string} iceStateOf
 * @property {(peer: Peer) => Path | null} pathOf
 * @property {(peer: Peer) => number | null} rttOf
 * @property {(peer: Peer, message: Outgoing, signal: AbortSignal | null) => Promise<void>} send
 * @property {(peer: Peer, data: unknown, options: {channel: string, timeout: number | null,
 *   signal: AbortSignal | null}) => Promise<any>} request
 * @property {(peer: Peer, options: {timeout: number | null, signal: AbortSignal | null}) => Promise<void>} flush
 * @property {(peer: Peer, blob: Blob, options: FileOptions) => Promise<FileSent>} sendFile
 * @property {(peer: Peer, label: string, options: ChannelOptions) => Channel} openChannel
 */

/**
 * @typedef {object} FileOptions
 * @property {string | null} [name]  what it is offered as; by default the name of the File
 * @property {((progress: FileProgress) => unknown) | null} [onProgress]  called at the beginning, at
 *   the end, and at most ten times a second
 * @property {AbortSignal | null} [signal]
 */

/** Messages that wait until their channel has room, in the order in which they came. */
export class SendLine {
  /** @type {Set<() => void>} */
  #waiting = new Set();
  #isBusy = false;

  /** Whether nobody has his turn, or waits for it. */
  get isFree() {
    return !this.#isBusy;
  }

  /**
   * Wait for the turn, which is to be given back with `leave`. Throws the reason of `signal`; then
   * there is nothing to give back.
   * @param {AbortSignal | null} signal
   * @returns {Promise<void>}
   */
  enter(signal) {
    signal?.throwIfAborted();
    if (!this.#isBusy) {
      this.#isBusy = true;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const turn = () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      const abort = () => {
        this.#waiting.delete(turn);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#waiting.add(turn);
    });
  }

  leave() {
    for (const turn of this.#waiting) {
      this.#waiting.delete(turn);
      turn();
      return;
    }
    this.#isBusy = false;
  }
}

/** What the manager keeps of a peer, out of the public interface. */
export class PeerRecord {
  /** @type {string | null} */
  closedReason = null;
  /** Rings when the state, the credit or the buffer has changed. */
  bell = new Bell();
  /** Who waits to send, on each channel where somebody does. @type {Map<string, SendLine>} */
  lines = new Map();
  /** What was accepted since others had their turn, in bytes. */
  burst = 0;
  /** The requests that wait for their answers.
      @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void}>} */
  requests = new Map();
  /** @type {UndeliveredMessage[]} */
  undelivered = [];
  /** When the latest `BadInput` about its files and channels was told. */
  complained = -Infinity;
  /** @type {Set<Channel>} */
  channels = new Set();
  /** Ping frames, and the number of the latest that was answered. */
  pingsSent = 0;
  pingsAnswered = 0;

  /**
   * @param {string | null} name
   * @param {Metadata} metadata
   * @param {ChannelBudget} budget
   */
  constructor(name, metadata, budget) {
    this.name = name;
    this.metadata = metadata;
    this.budget = budget;
  }
}

/**
 * `data` ready to be sent. Throws `InvalidData`, `MessageTooLarge`.
 * @param {unknown} data
 * @param {string} channel
 * @param {number} limit
 * @param {RoleValue} [role]
 * @param {number} [number]
 * @returns {Outgoing}
 */
export function encodedMessage(data, channel, limit, role = Role.PLAIN, number = 0) {
  const [kind, payload] = encodeValue(data);
  if (payload.length > limit) {
    throw new MessageTooLarge(
      `the message has ${payload.length} bytes, the limit is ${limit} (config.maxMessageSize): send it in parts`,
    );
  }
  return { kind: "Outgoing", channel, size: payload.length, parts: encodeMessage(kind, payload, role, number) };
}

const HALF_CHARACTER = /\p{Surrogate}/u;

/**
 * Throws `ConfigError` unless it can name a channel.
 * @param {string} what
 * @param {unknown} label
 */
export function checkLabel(what, label) {
  if (typeof label !== "string") throw new ConfigError(`${what} must be a text, not ${typeof label}`);
  if (HALF_CHARACTER.test(label)) throw new ConfigError(`${what} must be valid Unicode`);
  const size = utf8Length(label);
  if (size < 1 || size > MAX_CHANNEL) {
    throw new ConfigError(`${what} must be a name of 1 to ${MAX_CHANNEL} bytes of UTF-8, not ${repr(label)}`);
  }
  if (label.startsWith(RESERVED)) {
    throw new ConfigError(`${what} ${repr(label)}: names that begin with ${repr(RESERVED)} are reserved`);
  }
}

/** Something a peer sent. */
export class Message {
  #host;
  #request;

  /**
   * @param {PeerHost} host
   * @param {object} facts
   * @param {Peer} facts.sender
   * @param {any} facts.data
   * @param {string} facts.channel
   * @param {Path} facts.path
   * @param {Date} facts.receivedAt
   * @param {number} facts.request
   */
  constructor(host, { sender, data, channel, path, receivedAt, request }) {
    this.kind = "Message";
    /** Who sent it. */
    this.sender = sender;
    /** What was given to `Peer.send`: text, a Uint8Array, or what JSON makes of the rest. */
    this.data = data;
    this.channel = channel;
    /** How it came. */
    this.path = path;
    /** When it arrived here. */
    this.receivedAt = receivedAt;
    this.#host = host;
    this.#request = request;
  }

  /** Whether it was sent by `Peer.request`, and `reply` answers it. */
  get wantsReply() {
    return this.#request > 0;
  }

  /**
   * Answer a request; returns when the answer is accepted, as `Peer.send` does.
   *
   * The first answer counts; one that comes too late is dropped over there. Throws `UsageError` when
   * nobody asked, and what `Peer.send` throws.
   * @param {unknown} data
   */
  async reply(data) {
    await this.#answer(data, Role.REPLY);
  }

  /**
   * Answer a request with an error: over there `Peer.request` throws `RequestFailed` with this text.
   * Throws like `reply`, and `InvalidData` for anything but a string.
   * @param {string} text
   */
  async replyError(text) {
    if (typeof text !== "string") throw new InvalidData(`an error is text, not ${typeName(text)}`);
    await this.#answer(text, Role.ERROR);
  }

  /**
   * @param {unknown} data
   * @param {RoleValue} role
   */
  async #answer(data, role) {
    if (!this.wantsReply) {
      throw new UsageError("nobody waits for an answer to this message: it was sent by Peer.send");
    }
    const message = encodedMessage(data, this.channel, this.#host.maxMessageSize, role, this.#request);
    await this.#host.send(this.sender, message, null);
  }
}

/**
 * Somebody in the room, as one incarnation: a page that is loaded anew comes as another `Peer`.
 *
 * Where a method takes an AbortSignal, aborting it makes the call throw the signal's reason; what else
 * that leaves behind, the method says.
 */
export class Peer {
  #host;
  #id;
  #incarnation;
  #record;

  /**
   * @param {PeerHost} host
   * @param {string} id
   * @param {string} incarnation
   * @param {PeerRecord} record
   */
  constructor(host, id, incarnation, record) {
    this.#host = host;
    this.#id = id;
    this.#incarnation = incarnation;
    this.#record = record;
  }

  /** The name the peer is addressed by, unique in the room. */
  get id() {
    return this.#id;
  }

  /** Random, and another one for every process or page that holds the id. */
  get incarnation() {
    return this.#incarnation;
  }

  /** What people read; not unique. */
  get name() {
    return this.#record.name;
  }

  /** What the peer's application tells of itself. */
  get metadata() {
    return this.#record.metadata;
  }

  /**
   * `new → connecting → connected ⇄ disconnected → failed`, and `closed`.
   * @returns {PeerState}
   */
  get state() {
    return this.#record.closedReason === null ? this.#host.stateOf(this) : "closed";
  }

  /**
   * `new → gathering → checking → connected ⇄ disconnected → failed`, and `closed`: the current
   * connection's, in W3C WebRTC's words. An ICE restart does not begin it anew.
   */
  get iceState() {
    return this.#record.closedReason === null ? this.#host.iceStateOf(this) : "closed";
  }

  /** How data flows now: "direct", "turn" or "relay"; null while it does not. */
  get path() {
    return this.#record.closedReason === null ? this.#host.pathOf(this) : null;
  }

  /** Why the peer is gone; null while it is there. */
  get closedReason() {
    return this.#record.closedReason;
  }

  /** The latest round trip in seconds; null before the first. */
  get rtt() {
    return this.#record.closedReason === null ? this.#host.rttOf(this) : null;
  }

  /**
   * Send text, bytes (Uint8Array, ArrayBuffer) or JSON-able data; resolves when it is accepted.
   *
   * What is accepted reaches the other application exactly once, and in the order in which it was
   * accepted on its channel, whatever happens to the path, as long as both live. Otherwise
   * `messages-undelivered` tells. Waits only while the channel has `config.sendWindow` bytes that were
   * not acknowledged; there need be no path yet.
   *
   * Throws `InvalidData`, `MessageTooLarge` (over `config.maxMessageSize` or over the other side's
   * limit), `ConfigError` for a name that no channel can have, `TooManyChannels` for one more than the
   * other side takes, `PeerClosed` when the peer is gone (`Undelivered` when it went meanwhile),
   * `MeshClosed`. When it is aborted, the message was not accepted.
   * @param {unknown} data
   * @param {string} [channel]
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async send(data, channel = "default", { signal = null } = {}) {
    if (channel !== "default") checkLabel("channel", channel);
    await this.#host.send(this, encodedMessage(data, channel, this.#host.maxMessageSize), signal);
  }

  /**
   * Wait until everything accepted so far has arrived over there, and is acknowledged.
   *
   * It has arrived when that process has it, read or not; but an application that does not read takes
   * no more than its windows. `timeout` is in seconds, null for no limit. Throws `MeshTimeout`,
   * `Undelivered` when the peer is gone and not all had arrived, `MeshClosed`. Aborting it changes
   * nothing of what was sent.
   * @param {number | null} [timeout]
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async flush(timeout = null, { signal = null } = {}) {
    await this.#host.flush(this, { timeout, signal });
  }

  /**
   * Send a message that wants an answer, and return the answer's data.
   *
   * Over there it is a `Message` like any other, and its `reply` answers it. `timeout` is in seconds,
   * null for no limit. Throws `RequestFailed` with the other side's text when it answered with an
   * error, `MeshTimeout`, `PeerClosed` when the peer is gone, and what `send` throws. When it is
   * aborted, the request may arrive; its answer is dropped.
   * @param {unknown} data
   * @param {{timeout?: number | null, channel?: string, signal?: AbortSignal | null}} [options]
   * @returns {Promise<any>}
   */
  async request(data, { timeout = 30, channel = "default", signal = null } = {}) {
    checkLabel("channel", channel);
    return this.#host.request(this, data, { channel, timeout, signal });
  }

  /**
   * Send a File or a Blob; resolves when the other side has stored it and found its SHA-256 right.
   *
   * Over there `receiveFile` takes it, and is waited for. A transfer that broke goes on where it was
   * when the same file is sent again, where the other side keeps what it has. Files to one peer go one
   * after another.
   *
   * Throws `TransferFailed` when the other side refuses it or can't store it, `PeerClosed` when the
   * peer is gone, `ConfigError` for a name that can't be, `MeshClosed`. When it is aborted, the other
   * side is told and keeps what it has.
   * @param {Blob} blob
   * @param {FileOptions} [options]
   */
  async sendFile(blob, options = {}) {
    return this.#host.sendFile(this, blob, options);
  }

  /**
   * Open a plain data channel on the current connection (W3C WebRTC, createDataChannel).
   *
   * Resolves when it is open; the other side is told `channel-opened`. Unlike messages, a plain
   * channel ends with its connection, and nothing holds the sender back but its buffer.
   * `maxRetransmits` (a number) or `maxPacketLifeTime` (milliseconds), not both, make it partially
   * reliable (RFC 8831, section 6.4).
   *
   * Throws `PeerClosed` when the peer is gone, `ChannelClosed` when the connection ends first,
   * `ConfigError` for wrong options, `MeshClosed`. Waits for a direct path, or one over TURN; the
   * relay carries none of it. When it is aborted, the channel is closed.
   * @param {string} label
   * @param {Partial<ChannelOptions> & {signal?: AbortSignal | null}} [options]
   */
  async openChannel(label, { ordered = true, maxRetransmits = null, maxPacketLifeTime = null, signal = null } = {}) {
    checkLabel("label", label);
    if (maxRetransmits !== null && maxPacketLifeTime !== null) {
      throw new ConfigError(
        "a channel has maxRetransmits or maxPacketLifeTime, not both " +
          `(given ${maxRetransmits} and ${maxPacketLifeTime})`,
      );
    }
    for (const [name, value] of Object.entries({ maxRetransmits, maxPacketLifeTime })) {
      if (value !== null && !(Number.isInteger(value) && value >= 0 && value <= 65535)) {
        throw new ConfigError(`${name} must be a whole number between 0 and 65535, not ${String(value)}`);
      }
    }
    signal?.throwIfAborted();
    while (this.path === null || this.path === "relay") {
      this.#host.checkRunning();
      if (this.state === "closed") {
        const reason = this.#record.closedReason ?? "closed";
        throw new PeerClosed(`peer ${repr(this.#id)} is gone (${reason})`, { reason });
      }
      await this.#record.bell.wait(signal);
    }
    const channel = this.#host.openChannel(this, label, { ordered, maxRetransmits, maxPacketLifeTime });
    try {
      await channel.waitOpen({ signal });
    } catch (error) {
      channel.close();
      throw error;
    }
    return channel;
  }
}

/**
 * What the plain channels of one peer may keep unread, together. That of a channel which nobody has any
 * more is given back.
 */
export class ChannelBudget {
  used = 0;

  /** @param {number} limit */
  constructor(limit) {
    this.limit = limit;
  }

  /** Whether there is more than there may be. */
  get isExhausted() {
    return this.used > this.limit;
  }
}

/** What one channel keeps of its peer's budget. */
class ChannelShare {
  #used = 0;

  /** @param {ChannelBudget} budget */
  constructor(budget) {
    this.budget = budget;
  }

  /** @param {number} cost */
  add(cost) {
    this.#used += cost;
    this.budget.used += cost;
  }

  giveBack() {
    this.add(-this.#used);
  }
}

/** @type {FinalizationRegistry<ChannelShare>} */
const channelsForgotten = new FinalizationRegistry((share) => share.giveBack());

/** @param {string | Uint8Array} data */
const plainSize = (data) => (typeof data === "string" ? utf8Length(data) : data.byteLength);

/**
 * A plain data channel (RFC 8831). Iterate over it to read; text or bytes, as they were sent.
 *
 * What is not read is kept, up to `config.receiveWindow` bytes of all channels with the peer. Beyond it
 * a channel that may lose messages loses its oldest, and any other one that gets more is closed: WebRTC
 * gives a receiver no way to hold the sender back.
 */
export class Channel {
  #raw;
  #peer;
  #share;
  #sendBuffer;
  #closed;
  #bell = new Bell();
  #line = new SendLine();
  /** @type {ItemStream<string | Uint8Array>} */
  #stream;
  /** @type {string | null} */
  #closedBecause = null;

  /**
   * @param {RawChannel} raw
   * @param {Peer} peer
   * @param {object} options
   * @param {ChannelBudget} options.budget
   * @param {number} options.sendBuffer
   * @param {(channel: Channel) => void} options.closed
   */
  constructor(raw, peer, { budget, sendBuffer, closed }) {
    this.#raw = raw;
    this.#peer = peer;
    this.#share = new ChannelShare(budget);
    channelsForgotten.register(this, this.#share);
    this.#sendBuffer = sendBuffer;
    this.#closed = closed;
    this.#stream = new ItemStream((data) => {
      // By this the stream holds the channel: whoever still reads has not forgotten it.
      this.#share.add(-OVERHEAD - plainSize(data));
      return data;
    });
    raw.listen({
      onOpen: () => this.#bell.ring(),
      onMessage: (data) => this.#received(data),
      onLow: () => this.#bell.ring(),
      onClose: () => this.#end("closed by the other side, or with its connection"),
      low: sendBuffer >> 1,
    });
  }

  /** The name given by the side that opened it; not unique. */
  get label() {
    return this.#raw.label;
  }

  /** The peer at the other end. */
  get peer() {
    return this.#peer;
  }

  /** `connecting → open → closing → closed`. */
  get state() {
    return this.#closedBecause === null ? this.#raw.state : "closed";
  }

  /**
   * Send one message; waits while more than `config.sendBuffer` bytes wait to go out.
   *
   * Throws `ChannelClosed`, `InvalidData` for anything but text and bytes, `MessageTooLarge` over 65536
   * bytes. When it is aborted, nothing was sent.
   * @param {string | Uint8Array | ArrayBuffer} data
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async send(data, { signal = null } = {}) {
    const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : data;
    if (typeof bytes !== "string" && !(bytes instanceof Uint8Array)) {
      throw new InvalidData(`a plain channel sends text or bytes, not ${typeof data}`);
    }
    const size = plainSize(bytes);
    if (size > MAX_PLAIN) {
      throw new MessageTooLarge(
        `the message has ${size} bytes, a plain channel takes ${MAX_PLAIN}: use Peer.send, or send it in parts`,
      );
    }
    await this.#line.enter(signal);
    try {
      await this.waitOpen({ signal });
      while (this.#raw.bufferedAmount > this.#sendBuffer) {
        await this.#bell.wait(signal);
        this.#checkOpen();
      }
      this.#raw.send(bytes);
    } finally {
      this.#line.leave();
    }
  }

  /**
   * Wait until it is open. Throws `ChannelClosed` when it closes first.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async waitOpen({ signal = null } = {}) {
    for (;;) {
      this.#checkOpen();
      if (this.#raw.state === "open") return;
      await this.#bell.wait(signal);
    }
  }

  /** Close it on both sides. What was received can still be read. */
  close() {
    this.#end("closed here");
  }

  /**
   * What has arrived, each message once, however many loops there are: a `break` ends the loop, not the
   * channel, and the next loop goes on.
   * @returns {AsyncIterableIterator<string | Uint8Array, undefined>}
   */
  [Symbol.asyncIterator]() {
    const stream = this.#stream;
    return {
      next: () => stream.next(),
      return: async () => ({ done: true, value: undefined }),
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /**
   * The peer is gone, and its channels with it. Called by the manager.
   * @param {string} reason
   */
  abandon(reason) {
    this.#end(reason);
  }

  #checkOpen() {
    if (this.#closedBecause !== null) {
      const reason = this.#closedBecause;
      throw new ChannelClosed(`channel ${repr(this.label)} to ${repr(this.#peer.id)} is closed (${reason})`, { reason });
    }
  }

  /** @param {string | Uint8Array} data */
  #received(data) {
    if (this.#closedBecause !== null) return;
    const { budget } = this.#share;
    const stream = this.#stream;
    this.#share.add(OVERHEAD + plainSize(data));
    stream.put(data);
    while (budget.isExhausted && this.#raw.lossy && stream.size) stream.take();
    if (budget.isExhausted) this.#end(`more than ${budget.limit} bytes from this peer were not read`);
  }

  /** @param {string} reason */
  #end(reason) {
    if (this.#closedBecause !== null) return;
    this.#closedBecause = reason;
    this.#closed(this);
    this.#raw.close();
    this.#stream.end();
    this.#bell.ring();
  }
}
