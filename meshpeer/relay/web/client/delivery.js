// All messages between two incarnations: each exactly once, in order, whatever path they take.
//
// Every channel numbers its parts. The sender keeps them until they are acknowledged; the receiver
// takes them in order, each once, and says how many more it takes. Neither begins anew with a new
// connection or another path: a `Delivery` lives as long as both processes and what they know of
// each other.
//
// **The receiver chooses the path.** On the one it wants it sends a `Resume`, with what it has of
// each channel and a *round*, which rises with each. The sender obeys the latest round: it answers
// `Start` on that path and goes on from there, whatever it had sent elsewhere. What arrives on
// another path, or before that answer, is of an earlier round and not looked at. So on each path,
// within a round, parts follow each other without a gap, and nothing depends on what else a path
// lost.
//
// **Credit** is given by channel: `channelWindow` beyond what the application has taken. What of a
// large message does not fit into that is reserved from `receiveWindow`, which all channels share:
// all that it needs, as soon as there is so much, so that no two messages wait for each other half
// received.
//
// Among the channels that have something to send the one goes first that has had least, by its
// priority (start-time fair queueing): a large message lets others pass between its parts.

import {
  FIRST,
  LAST,
  MAX_CHANNELS,
  MAX_FRAME,
  MessageTooLarge,
  OVERHEAD,
  ProtocolError,
  RESERVED,
  Role,
  TooManyChannels,
  checkValue,
  decodeMessage,
  decodeValue,
  encodeFrame,
  encodeParts,
  isLast,
  partKind,
  partRole,
  repr,
  requestNumber,
  runHead,
} from "./codec.js";

/** @import { Frame, FrameChannel, KindValue, Limit, Part, Resume, RoleValue, Run, UndeliveredMessage } from "./codec.js" */

/**
 * An encoded part, and what it is charged.
 * @typedef {[part: Uint8Array, charge: number]} Item
 */

/**
 * A moment in what was accepted: for some channels, how many parts had been accepted by then.
 * @typedef {[number: number, place: number][]} Mark
 */

/**
 * A message ready to be sent; made once, however many peers get it.
 * @typedef {object} Outgoing
 * @property {"Outgoing"} kind
 * @property {string} channel
 * @property {number} size  bytes of the message
 * @property {readonly Item[]} parts  as `encodeMessage` makes them
 */

/** @typedef {"very-low" | "low" | "medium" | "high"} Priority */

/**
 * What delivery takes of the settings (MeshConfig). Sizes are bytes.
 * @typedef {object} DeliveryConfig
 * @property {number} maxMessageSize
 * @property {number} sendWindow
 * @property {number} channelWindow
 * @property {number} receiveWindow
 * @property {number} maxChannels
 * @property {Readonly<Record<string, Priority>>} channelPriorities  by the name of the channel
 * @property {number} ackDelay  seconds
 */

/** The path over the relay. Every other path is the epoch of its connection, from 1. */
export const RELAY = 0;
/** What may arrive, by its charge, before it is acknowledged without delay. */
export const ACK_EVERY = 64 * 1024;
/** Bytes of the largest message that a side must take at least, as `maxMessageSize` has it. */
export const MIN_MAX_MESSAGE = 1024;
/**
 * The credit that a side must give each channel at least: the largest part fits into it, even if
 * what the sender knows of it is an eighth behind.
 */
export const MIN_WINDOW = 32 * 1024;
/**
 * The share that a channel of each priority gets (W3C WebRTC Priority Control, RTCPriorityType).
 * @type {Readonly<Record<Priority, number>>}
 */
export const PRIORITIES = Object.freeze({ "very-low": 1, low: 2, medium: 4, high: 8 });
/** Bytes that the head of a run may have, and a part that is worth another run. */
const RUN_HEAD = 24;

/**
 * A whole message. `charge` is to be given back with `Delivery.taken`.
 *
 * It is kept as the bytes that came, which are what `charge` counts; they are known to decode.
 */
export class Received {
  /**
   * @param {KindValue} valueKind
   * @param {string} channel
   * @param {number} number  of the channel, among those of the sender
   * @param {Uint8Array} payload
   * @param {number} charge
   * @param {RoleValue} role
   * @param {number} request  the number of the request that this is, or answers; 0 when it is neither
   */
  constructor(valueKind, channel, number, payload, charge, role, request) {
    this.kind = "Received";
    this.valueKind = valueKind;
    this.channel = channel;
    this.number = number;
    this.payload = payload;
    this.charge = charge;
    this.role = role;
    this.request = request;
  }

  /**
   * The data that was sent, built anew by each call: text, bytes, or what JSON says.
   * @returns {unknown}
   */
  value() {
    return decodeValue(this.valueKind, this.payload);
  }
}

/**
 * A queue with two ends; what is done at either takes the same time however long it is.
 * @template T
 */
export class Deque {
  static #LEAST = 16;
  /** A ring that had to be longer than this is not kept once it is empty. */
  static #KEPT = 1024;

  /**
   * A ring; its length is a power of two.
   * @type {(T | undefined)[]}
   */
  #ring = new Array(Deque.#LEAST);
  #head = 0;
  #size = 0;

  get size() {
    return this.#size;
  }

  /**
   * The first, which must be there.
   * @returns {T}
   */
  get first() {
    return /** @type {T} */ (this.#ring[this.#head]);
  }

  /** @param {T} item */
  push(item) {
    if (this.#size === this.#ring.length) this.#grow();
    this.#ring[(this.#head + this.#size++) & (this.#ring.length - 1)] = item;
  }

  /** @param {T} item */
  unshift(item) {
    if (this.#size === this.#ring.length) this.#grow();
    this.#head = (this.#head - 1) & (this.#ring.length - 1);
    this.#ring[this.#head] = item;
    this.#size++;
  }

  /**
   * Take out the first, which must be there.
   * @returns {T}
   */
  shift() {
    const item = this.first;
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#ring.length - 1);
    this.#shrink();
    return item;
  }

  /**
   * Take out the last, which must be there.
   * @returns {T}
   */
  pop() {
    const at = (this.#head + this.#size - 1) & (this.#ring.length - 1);
    const item = /** @type {T} */ (this.#ring[at]);
    this.#ring[at] = undefined;
    this.#shrink();
    return item;
  }

  clear() {
    this.#ring = new Array(Deque.#LEAST);
    this.#head = this.#size = 0;
  }

  *[Symbol.iterator]() {
    for (let i = 0; i < this.#size; i++) {
      yield /** @type {T} */ (this.#ring[(this.#head + i) & (this.#ring.length - 1)]);
    }
  }

  #grow() {
    this.#ring = [...this.#ring.slice(this.#head), ...this.#ring.slice(0, this.#head)];
    this.#ring.length *= 2;
    this.#head = 0;
  }

  #shrink() {
    if (--this.#size === 0 && this.#ring.length > Deque.#KEPT) this.clear();
  }
}

/** What is to go out on one channel. */
class Sending {
  /** The virtual time at which it has had its share; the lowest goes next. */
  turn = 0;
  /** All parts before this one have arrived. */
  acked = 0;
  /** The first that is in the queue; those between are in `unacked`. */
  next = 0;
  /** Beyond the highest that was ever sent. */
  most = 0;
  /** What all parts before `next` are charged. */
  offset = 0;
  /** @type {Deque<Item>} */
  unacked = new Deque();
  /** @type {Deque<Item>} */
  queue = new Deque();
  /**
   * Parts that have arrived, of a message of which others have not.
   * @type {Uint8Array[]}
   */
  half = [];
  /** What all that is unacknowledged is charged. */
  waiting = 0;
  /**
   * Where, and how many, parts were taken out of the queue: marks before count without.
   * @type {[at: number, count: number][]}
   */
  removed = [];
  /**
   * The parts that were given up last, from and to: they have not arrived, though `acked` is
   * beyond.
   * @type {[start: number, stop: number]}
   */
  lost = [0, 0];

  /**
   * @param {number} number
   * @param {string} name
   * @param {number} share
   * @param {number} limit
   */
  constructor(number, name, share, limit) {
    this.number = number;
    this.name = name;
    this.share = share;
    this.limit = limit;
  }

  get ready() {
    return this.queue.size > 0 && this.offset + this.queue.first[1] <= this.limit;
  }

  /** Beyond the last that was accepted. */
  get end() {
    return this.next + this.queue.size;
  }

  /**
   * All before this part have arrived; how many more messages that are.
   * @param {number} arrived
   */
  acknowledge(arrived) {
    const { half, unacked, queue } = this;
    let messages = 0;
    for (let count = arrived - this.acked; count > 0; count--) {
      let item;
      if (unacked.size) {
        item = unacked.shift();
      } else {
        // It arrived over the path before, and was to be sent again.
        item = queue.shift();
        this.next++;
        this.offset += item[1];
      }
      this.waiting -= item[1];
      if (!isLast(item[0])) {
        half.push(item[0]);
        continue;
      }
      messages++;
      if (half.length) half.length = 0;
    }
    this.acked = Math.max(this.acked, arrived);
    return messages;
  }

  /** Send what is unacknowledged once more. */
  rewind() {
    const { unacked, queue } = this;
    while (unacked.size) {
      const item = unacked.pop();
      this.offset -= item[1];
      queue.unshift(item);
    }
    this.next = this.acked;
  }

  /** The parts of each message that has not arrived whole. */
  messages() {
    /** @type {Uint8Array[][]} */
    const out = [];
    let message = [...this.half];
    for (const items of [this.unacked, this.queue]) {
      for (const [part] of items) {
        message.push(part);
        if (isLast(part)) {
          out.push(message);
          message = [];
        }
      }
    }
    return out;
  }

  /** Give up what has not arrived; what is accepted from now on follows it. */
  clear() {
    for (const [, charge] of this.queue) this.offset += charge;
    if (this.end > this.acked) this.lost = [this.acked, this.end];
    this.acked = this.next = this.most = this.end;
    this.unacked.clear();
    this.queue.clear();
    this.half.length = 0;
    this.waiting = 0;
  }

  /** How many parts were taken out of the queue. */
  get gone() {
    return this.removed.reduce((sum, [, count]) => sum + count, 0);
  }
}

/** What arrives on one channel. */
class Receiving {
  /** The part that is waited for. */
  next = 0;
  /** What all parts before it were charged. */
  received = 0;
  /** How much of that the application has taken. */
  taken = 0;
  /** Whether the sender knows less than there is to know. */
  stale = false;
  /**
   * The first part of a message that has not arrived whole.
   * @type {Part | null}
   */
  head = null;
  /** @type {Uint8Array[]} */
  pieces = [];
  /** Bytes of the pieces. */
  size = 0;
  /** What they were charged. */
  charge = 0;

  /**
   * @param {number} number
   * @param {string} name
   * @param {number} limit
   */
  constructor(number, name, limit) {
    this.number = number;
    this.name = name;
    this.limit = limit;
    /** The limit that the sender knows. */
    this.told = limit;
  }

  forgetHalf() {
    this.taken += this.charge;
    this.head = null;
    this.pieces = [];
    this.size = this.charge = 0;
  }
}

/**
 * Both directions between two incarnations. No I/O, no clock.
 *
 * `attach` and `detach` say which path is wanted and which is gone; what arrives goes in by
 * `received`; what is to go out on path `out` comes from `pull`.
 */
export class Delivery {
  /** Messages that were accepted. */
  messagesSent = 0;
  /**
   * How many of them arrived over a connection, direct or through TURN, and not over the relay:
   * each counts once, when it is acknowledged, for the path that is used then.
   */
  messagesDirect = 0;
  messagesReceived = 0;
  /** What the messages have that were accepted. */
  bytesSent = 0;
  bytesReceived = 0;

  /** @type {DeliveryConfig} */
  #config;

  // Sending.
  /** @type {Map<string, Sending>} */
  #channels = new Map();
  /** @type {Sending[]} */
  #numbered = [];
  /** @type {number | null} */
  #out = null;
  /**
   * The latest `out` there was.
   * @type {number | null}
   */
  #sentOn = null;
  #theirRound = 0;
  /** @type {number | null} */
  #maxMessage = null;
  #maxChannels;
  #window = 0;
  // What waits for room on the path. Of what the other side can ask for again and again, only the
  // latest answer does.
  /** @type {Deque<Uint8Array>} */
  #control = new Deque();
  /** @type {Uint8Array | null} */
  #answer = null;
  /** @type {number | null} */
  #pong = null;
  #nowTurn = 0;
  #toAsk = false;
  /** @type {Mark | null} */
  #asked = null;
  /** @type {UndeliveredMessage[]} */
  #refused = [];
  /** @type {number[]} */
  #refusedRequests = [];

  // Receiving.
  /** @type {Receiving[]} */
  #incoming = [];
  /** @type {number | null} */
  #in = null;
  #round = 0;
  #started = false;
  /**
   * Those that wait for credit; there are few.
   * @type {Receiving[]}
   */
  #hungry = [];
  #sinceAck = 0;
  /** @type {number | null} */
  #ackAt = null;
  #ackNow = false;

  /** @param {DeliveryConfig} config */
  constructor(config) {
    this.#config = config;
    this.#maxChannels = config.maxChannels;
  }

  // --- paths ---

  /** The path that the other side wants to receive on; null while there is none. */
  get out() {
    return this.#out;
  }

  /** The path that we asked to receive on. */
  get inbound() {
    return this.#in;
  }

  /**
   * Receive on this path from now on: the frame that says so, to be sent on it.
   * @param {number} path
   * @param {{ask: boolean}} options `ask`: the other side is to do the same, as we want to send
   *   there.
   */
  attach(path, { ask }) {
    this.#in = path;
    this.#started = false;
    this.#round++;
    for (const channel of this.#incoming) {
      channel.stale = false;
      channel.told = channel.limit;
    }
    this.#acknowledged();
    return encodeFrame({
      kind: "Resume",
      round: this.#round,
      ask,
      maxMessage: this.#config.maxMessageSize,
      maxChannels: this.#config.maxChannels,
      window: this.#config.channelWindow,
      limits: this.#incoming.map(limitOf),
    });
  }

  /**
   * Receive on path `out` from now on, as the other side asked: `pull` has the frame.
   * @param {number} path
   */
  answer(path) {
    if (path !== this.#out) throw new Error(`path ${path} is not that of the other side`);
    this.#answer = this.attach(path, { ask: false });
  }

  /** Whether an answer waits for room. */
  get answering() {
    return this.#answer !== null;
  }

  /**
   * Answer a ping; of several that wait for room, the latest is.
   * @param {number} nonce
   */
  pong(nonce) {
    this.#pong = nonce;
  }

  /**
   * This path is gone.
   * @param {number} path
   */
  detach(path) {
    if (this.#out === path) {
      this.#out = this.#answer = this.#pong = null;
      this.#control.clear();
    }
    if (this.#in === path) {
      this.#in = null;
      this.#started = false;
    }
  }

  // --- sending ---

  /**
   * Whether another message of this channel is accepted now.
   * @param {string} channel
   */
  hasRoom(channel) {
    const sending = this.#channels.get(channel);
    return sending === undefined || sending.waiting < this.#config.sendWindow;
  }

  /**
   * Take a message on; it goes out as soon as it may. The place it has, for `arrived`.
   *
   * Throws `MessageTooLarge`, `TooManyChannels`.
   * @param {Outgoing} message
   * @returns {[number: number, place: number]}
   */
  accept(message) {
    if (this.#maxMessage !== null && message.size > this.#maxMessage) {
      throw new MessageTooLarge(
        `the message has ${message.size} bytes, the other side takes ${this.#maxMessage}: send it in parts`,
      );
    }
    const channel = this.#channels.get(message.channel) ?? this.#open(message.channel);
    // Who had nothing to send has no claim to what the others had meanwhile.
    if (!channel.queue.size) channel.turn = Math.max(channel.turn, this.#nowTurn);
    for (const item of message.parts) {
      channel.queue.push(item);
      channel.waiting += item[1];
    }
    this.messagesSent++;
    this.bytesSent += message.size;
    return [channel.number, channel.end + channel.gone];
  }

  /** @param {string} name */
  #open(name) {
    const number = this.#channels.size;
    if (number >= this.#maxChannels) {
      throw new TooManyChannels(
        `${number} channels are in use already, as many as the other side takes: ${repr(name)} would be one more`,
      );
    }
    const priorities = this.#config.channelPriorities;
    const share = PRIORITIES[Object.hasOwn(priorities, name) ? priorities[name] : "low"];
    const channel = new Sending(number, name, share, this.#window);
    this.#channels.set(name, channel);
    this.#numbered.push(channel);
    if (this.#out !== null) this.#control.push(encodeFrame({ kind: "Open", channel: number, name }));
    return channel;
  }

  /**
   * All that was accepted so far.
   * @returns {Mark}
   */
  mark() {
    return this.#numbered.filter((c) => c.waiting > 0).map((c) => [c.number, c.end + c.gone]);
  }

  /**
   * Whether the other side has acknowledged all of it.
   * @param {Mark} mark
   */
  arrived(mark) {
    for (const [number, place] of mark) {
      const channel = this.#numbered[number];
      if (channel === undefined) continue; // refused, with all that was accepted for it
      let end = place;
      for (const [at, count] of channel.removed) if (at < place) end -= count;
      const [start, stop] = channel.lost;
      if (end > channel.acked || (start < end && end <= stop)) return false;
    }
    return true;
  }

  /** Somebody waits for acknowledgements: they are not to be delayed. */
  ask() {
    this.#toAsk = true;
  }

  /** Whether something accepted has not gone out. */
  get unsent() {
    return this.#numbered.some((channel) => channel.queue.size > 0);
  }

  /** What was accepted and has not arrived as far as is known, by its charge. */
  get unacknowledged() {
    return this.#numbered.reduce((sum, channel) => sum + channel.waiting, 0);
  }

  /** Whether `pull` has something that is not a message. */
  get due() {
    return (
      this.#out !== null &&
      (this.#ackNow || this.#control.size > 0 || this.#answer !== null || this.#pong !== null)
    );
  }

  /**
   * The next frame for path `out`, of at most `size` bytes unless it is one part; null when there
   * is none to be sent now.
   * @param {number} size
   * @returns {Uint8Array | null}
   */
  pull(size) {
    if (this.#out === null) return null;
    if (this.#answer !== null) {
      const answer = this.#answer;
      this.#answer = null;
      return answer;
    }
    if (this.#control.size) return this.#control.shift();
    if (this.#ackNow) return this.#acks();
    if (this.#pong !== null) {
      const nonce = this.#pong;
      this.#pong = null;
      return encodeFrame({ kind: "Pong", nonce });
    }
    /** @type {Uint8Array[]} */
    const pieces = [];
    let room = Math.min(size, MAX_FRAME) - 1;
    for (let channel = this.#next(); channel !== null; channel = this.#next()) {
      const used = Delivery.#run(channel, room, pieces);
      if (!used) break;
      room -= used;
      this.#nowTurn = channel.turn;
      channel.turn += used / channel.share;
      if (room < 2 * RUN_HEAD) break;
    }
    return pieces.length ? encodeParts(pieces) : this.#question();
  }

  /** The channel whose turn it is. */
  #next() {
    /** @type {Sending | null} */
    let best = null;
    for (const channel of this.#numbered) {
      if (channel.ready && (best === null || channel.turn < best.turn)) best = channel;
    }
    return best;
  }

  /**
   * Put a run of parts behind `pieces`; the bytes that it takes.
   * @param {Sending} channel
   * @param {number} room
   * @param {Uint8Array[]} pieces
   */
  static #run(channel, room, pieces) {
    const { queue, unacked, limit } = channel;
    const head = pieces.length;
    let { offset } = channel;
    let left = room - RUN_HEAD;
    let used = 0;
    let count = 0;
    while (queue.size) {
      const item = queue.first;
      const [part, charge] = item;
      left -= part.length;
      // A part that is too large for what was asked still goes when it is alone.
      if ((left < 0 && (count || head)) || offset + charge > limit) break;
      if (!count) pieces.push(part); // in the place of the head, which is known when all are there
      offset += charge;
      queue.shift();
      unacked.push(item);
      pieces.push(part);
      used += part.length;
      count++;
    }
    if (!count) return 0;
    pieces[head] = runHead(channel.number, channel.next, count);
    channel.next += count;
    channel.offset = offset;
    channel.most = Math.max(channel.most, channel.next);
    return pieces[head].length + used;
  }

  /** A ping behind all that was sent, once, when somebody waits for it to arrive. */
  #question() {
    if (!this.#toAsk || this.unsent) return null;
    this.#toAsk = false;
    /** @type {Mark} */
    const mark = this.#numbered.filter((c) => c.unacked.size > 0).map((c) => [c.number, c.next]);
    if (!mark.length || (this.#asked !== null && sameMark(mark, this.#asked))) return null;
    this.#asked = mark;
    return encodeFrame({ kind: "Ping", nonce: 0 });
  }

  /** The other side is gone: what has not arrived. Nothing of it is sent any more. */
  giveUp() {
    /** @type {UndeliveredMessage[]} */
    const messages = [];
    for (const channel of this.#numbered) {
      for (const each of undelivered(channel.messages(), channel.name)) messages.push(each);
      channel.clear();
    }
    return messages;
  }

  /**
   * What was accepted before it was known that the other side does not take messages so large, or
   * so many channels; and the numbers of the requests among it. Told once.
   * @returns {[messages: UndeliveredMessage[], requests: number[]]}
   */
  refused() {
    /** @type {[UndeliveredMessage[], number[]]} */
    const refused = [this.#refused, this.#refusedRequests];
    this.#refused = [];
    this.#refusedRequests = [];
    return refused;
  }

  // --- what arrives ---

  /**
   * A frame arrived on a path. Adds the messages that are whole now to `messages`.
   *
   * Throws `ProtocolError` for what is out of place, too large, beyond the credit, or does not
   * decode; what was added before counts.
   * @param {number} path
   * @param {Frame} frame
   * @param {number} now
   * @param {Received[]} messages
   */
  received(path, frame, now, messages) {
    switch (frame.kind) {
      case "Parts":
        if (this.#started && path === this.#in) this.#parts(frame.runs, now, messages);
        break;
      case "Ack":
        for (const limit of frame.limits) this.#limited(limit);
        break;
      case "Open":
        if (this.#started && path === this.#in) this.#opened(frame.channel, frame.name);
        break;
      case "Start":
        if (frame.round === this.#round && path === this.#in && !this.#started) {
          this.#start(frame.channels);
        }
        break;
      case "Resume":
        throw new Error("a resume goes to `resumed`");
      case "Ping":
        if (this.#sinceAck || this.#incoming.some((c) => c.stale)) this.#ackNow = true;
        break;
    }
  }

  /**
   * The other side wants to receive on this path. False when a later round is known.
   *
   * Throws `ProtocolError`, and changes nothing, when it says what can't be.
   * @param {number} path
   * @param {Resume} resume
   */
  resumed(path, resume) {
    if (resume.round <= this.#theirRound) return false;
    if (resume.maxMessage < MIN_MAX_MESSAGE) {
      throw new ProtocolError(
        `it takes messages of ${resume.maxMessage} bytes, the least is ${MIN_MAX_MESSAGE}`,
        { code: "bad_limit", field: "max_message" },
      );
    }
    if (resume.window < MIN_WINDOW) {
      throw new ProtocolError(
        `it gives a channel ${resume.window} of credit, the least is ${MIN_WINDOW}`,
        { code: "bad_limit", field: "window" },
      );
    }
    for (const limit of resume.limits) this.#check(limit);
    if (path !== this.#out) this.#answer = null;
    for (const limit of resume.limits) this.#limited(limit); // of what went over the path before
    this.#theirRound = resume.round;
    this.#out = this.#sentOn = path;
    this.#window = resume.window;
    if (this.#maxMessage === null) this.#setLimits(resume);
    for (const channel of this.#numbered) {
      this.#raise(channel, resume.window);
      channel.rewind();
      channel.turn = Math.max(channel.turn, this.#nowTurn);
    }
    for (const incoming of this.#incoming) {
      // What was last said of it may be lost with the path before.
      incoming.stale = this.#ackNow = true;
    }
    this.#asked = null;
    this.#toAsk = true; // somebody may wait whose question was lost with the path before
    this.#pong = null;
    this.#control.clear();
    this.#control.push(
      encodeFrame({
        kind: "Start",
        round: resume.round,
        channels: this.#numbered.map((c) => ({
          kind: "Channel",
          channel: c.number,
          seq: c.next,
          offset: c.offset,
          name: c.name,
        })),
      }),
    );
    return true;
  }

  /**
   * They are those of the other side's program, so the first that are told hold.
   * @param {Resume} resume
   */
  #setLimits(resume) {
    this.#maxMessage = resume.maxMessage;
    this.#maxChannels = Math.min(resume.maxChannels, MAX_CHANNELS);
    for (const channel of this.#numbered.splice(this.#maxChannels)) {
      this.#refuse(channel.messages(), channel.name);
      this.#channels.delete(channel.name);
    }
    for (const channel of this.#numbered) this.#refuseLarger(channel, resume.maxMessage);
  }

  /**
   * Nothing of this channel was sent yet.
   * @param {Sending} channel
   * @param {number} most
   */
  #refuseLarger(channel, most) {
    let place = channel.next; // what was given up before has its numbers
    channel.lost = [0, 0];
    for (const parts of channel.messages()) {
      const items = parts.map(() => channel.queue.shift());
      place += parts.length;
      if (decodeMessage(parts)[2].length <= most) {
        // Behind the others, so that all are where they were.
        for (const item of items) channel.queue.push(item);
      } else {
        this.#refuse([parts], channel.name);
        for (const [, charge] of items) channel.waiting -= charge;
        channel.removed.push([place - 1, parts.length]);
      }
    }
  }

  /**
   * @param {Uint8Array[][]} messages
   * @param {string} channel
   */
  #refuse(messages, channel) {
    for (const each of undelivered(messages, channel)) this.#refused.push(each);
    for (const parts of messages) {
      const number = requestNumber(parts);
      if (number) this.#refusedRequests.push(number);
    }
  }

  /** @param {Limit} limit */
  #check(limit) {
    const channels = this.#numbered;
    if (limit.channel >= channels.length) {
      throw new ProtocolError(
        `channel ${limit.channel} is acknowledged, ${channels.length} are in use`,
        { code: "bad_ack", field: "channel" },
      );
    }
    const channel = channels[limit.channel];
    if (limit.next > channel.most) {
      throw new ProtocolError(
        `${limit.next} parts of channel ${repr(channel.name)} are acknowledged, ${channel.most} were sent`,
        { code: "bad_ack", field: "next" },
      );
    }
    return channel;
  }

  /** @param {Limit} limit */
  #limited(limit) {
    const channel = this.#check(limit);
    const messages = channel.acknowledge(limit.next);
    if (this.#sentOn !== null && this.#sentOn !== RELAY) this.messagesDirect += messages;
    this.#raise(channel, limit.limit);
  }

  /**
   * @param {Sending} channel
   * @param {number} limit
   */
  #raise(channel, limit) {
    if (limit <= channel.limit) return; // overtaken, by another path
    if (!channel.ready) channel.turn = Math.max(channel.turn, this.#nowTurn);
    channel.limit = limit;
  }

  // --- the receiving side ---

  /**
   * @param {number} number
   * @param {string} name
   */
  #opened(number, name) {
    const known = this.#incoming.length;
    if (number < known && this.#incoming[number].name === name) return this.#incoming[number];
    if (number !== known || this.#incoming.some((channel) => channel.name === name)) {
      throw new ProtocolError(
        `channel ${number} can't be ${repr(name)}, ${known} are in use`,
        { code: "bad_channel", field: "channel" },
      );
    }
    if (known >= this.#config.maxChannels) {
      throw new ProtocolError(
        `channel ${repr(name)} would be one more than ${known}, the limit`,
        { code: "too_many_channels", field: "channel" },
      );
    }
    const channel = new Receiving(number, name, this.#config.channelWindow);
    this.#incoming.push(channel);
    return channel;
  }

  /** @param {readonly FrameChannel[]} channels */
  #start(channels) {
    for (const { channel: number, seq, offset, name } of channels) {
      const channel = this.#opened(number, name);
      if (seq <= channel.next && offset <= channel.received) continue;
      if (seq <= channel.next || offset <= channel.received) {
        throw new ProtocolError(
          `channel ${repr(name)} can't go on at part ${seq}, ${offset}: it is at ${channel.next}, ${channel.received}`,
          { code: "bad_sequence", field: "seq" },
        );
      }
      // The sender gave up what is between.
      channel.forgetHalf();
      channel.taken += offset - channel.received;
      channel.next = seq;
      channel.received = offset;
      this.#extend(channel);
      channel.stale = this.#ackNow = true;
    }
    this.#started = true;
    this.#feed();
  }

  /**
   * @param {Run[]} runs
   * @param {number} now
   * @param {Received[]} out
   */
  #parts(runs, now, out) {
    const since = this.#sinceAck;
    const first = out.length;
    try {
      for (const { channel: number, seq, parts } of runs) {
        if (number >= this.#incoming.length) {
          throw new ProtocolError(
            `parts of channel ${number}, ${this.#incoming.length} are open`,
            { code: "bad_channel", field: "channel" },
          );
        }
        const channel = this.#incoming[number];
        if (seq > channel.next) {
          throw new ProtocolError(
            `part ${seq} of channel ${repr(channel.name)}, ${channel.next} is the next`,
            { code: "bad_sequence", field: "seq" },
          );
        }
        channel.stale = true;
        for (let i = channel.next - seq; i < parts.length; i++) this.#part(channel, parts[i], out);
      }
    } finally {
      for (let i = first; i < out.length; i++) {
        this.messagesReceived++;
        this.bytesReceived += out[i].charge - OVERHEAD;
      }
      if (this.#sinceAck >= ACK_EVERY) this.#ackNow = true;
      else if (!since) this.#ackAt = now + this.#config.ackDelay;
    }
  }

  /**
   * @param {Receiving} channel
   * @param {Part} part
   * @param {Received[]} out
   */
  #part(channel, part, out) {
    const { flags, total, payload } = part;
    const begins = (flags & FIRST) !== 0;
    const ends = (flags & LAST) !== 0;
    const { maxMessageSize } = this.#config;
    const head = channel.head;
    let charge = payload.length;
    if (begins) {
      charge += OVERHEAD;
      if (head !== null) throw outOfPlace("a message begins inside another");
      if (total > maxMessageSize) {
        throw new ProtocolError(
          `a message of ${total} bytes, the limit is ${maxMessageSize}`,
          { code: "too_large", field: "total" },
        );
      }
    } else if (head === null) {
      throw outOfPlace("a part of no message");
    }
    const received = channel.received + charge;
    if (received > channel.limit) {
      throw new ProtocolError(
        `${received} was sent on channel ${repr(channel.name)}, the credit is ${channel.limit}`,
        { code: "beyond_credit", field: "payload" },
      );
    }
    if (begins && ends) {
      if (payload.length > maxMessageSize) {
        throw new ProtocolError(
          `a message of ${payload.length} bytes, the limit is ${maxMessageSize}`,
          { code: "too_large", field: "length" },
        );
      }
      // The application gets bytes of its own: it may look at their buffer.
      out.push(wholeMessage(channel, part, payload.slice(), charge));
    } else if (begins) {
      const piece = kept(payload);
      channel.head = { ...part, payload: piece };
      channel.pieces.push(piece);
      channel.size = payload.length;
      channel.charge = charge;
    } else if (head !== null) {
      const size = channel.size + payload.length;
      if (size > head.total || (ends && size < head.total)) {
        throw new ProtocolError(
          `a message of ${head.total} bytes has ${size}`,
          { code: "bad_frame", field: "total" },
        );
      }
      if (ends) {
        const message = wholeMessage(channel, head, assembled(channel.pieces, payload, size), channel.charge + charge);
        channel.charge = 0;
        channel.forgetHalf();
        out.push(message);
      } else {
        channel.pieces.push(kept(payload));
        channel.size = size;
        channel.charge += charge;
      }
    }
    channel.received = received;
    channel.next++;
    this.#sinceAck += charge;
    if (begins && !ends && received + total - payload.length > channel.limit) {
      if (!this.#hungry.includes(channel)) this.#hungry.push(channel);
      this.#feed();
    }
  }

  /**
   * The application took a message; `due` says whether that is worth a frame.
   * @param {number} number Of the channel.
   * @param {number} charge
   */
  taken(number, charge) {
    const channel = this.#incoming[number];
    if (channel === undefined) return; // of an incarnation that is back, after all of it was forgotten
    channel.taken = Math.min(channel.taken + charge, channel.received);
    this.#extend(channel);
    if (this.#hungry.length) this.#feed();
  }

  /**
   * How much the channel has reserved of what all share.
   * @param {Receiving} channel
   */
  #beyond(channel) {
    return Math.max(0, channel.limit - channel.taken - this.#config.channelWindow);
  }

  /**
   * Give the channel what it may have by itself.
   * @param {Receiving} channel
   */
  #extend(channel) {
    const window = this.#config.channelWindow;
    const limit = channel.taken + window;
    if (limit > channel.limit) {
      channel.limit = limit;
      // Not for each message: an eighth of the window is worth a frame.
      if (limit - channel.told >= window >> 3) channel.stale = this.#ackNow = true;
    }
  }

  /** Reserve what half received messages need, the one that waits longest first. */
  #feed() {
    while (this.#hungry.length) {
      const channel = this.#hungry[0];
      if (channel.head !== null) {
        const whole = channel.received - channel.charge + OVERHEAD + channel.head.total;
        const more = whole - channel.limit;
        if (more > 0) {
          const reserved = this.#incoming.reduce((sum, each) => sum + this.#beyond(each), 0);
          if (reserved + more > this.#config.receiveWindow) return;
          channel.limit = whole;
          channel.stale = this.#ackNow = true;
        }
      }
      this.#hungry.shift();
    }
  }

  /** What has arrived and the application has not taken, by its charge. */
  get unread() {
    return this.#incoming.reduce((sum, channel) => sum + channel.received - channel.taken, 0);
  }

  /** Bytes that have arrived of messages that are not complete. */
  get half() {
    return this.#incoming.reduce((sum, channel) => sum + channel.size, 0);
  }

  // --- acknowledgements and time ---

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#ackAt;
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    if (this.#ackAt !== null && this.#ackAt <= now) {
      this.#ackAt = null;
      this.#ackNow = true;
    }
  }

  /** What has arrived and was not acknowledged, before we leave: to be sent on any path. */
  lastAck() {
    return this.#incoming.some((channel) => channel.stale) ? this.#acks() : null;
  }

  #acks() {
    /** @type {Limit[]} */
    const limits = [];
    for (const channel of this.#incoming) {
      if (channel.stale) {
        channel.stale = false;
        channel.told = channel.limit;
        limits.push(limitOf(channel));
      }
    }
    this.#acknowledged();
    return encodeFrame({ kind: "Ack", limits });
  }

  #acknowledged() {
    this.#ackNow = false;
    this.#ackAt = null;
    this.#sinceAck = 0;
  }
}

/**
 * @param {Receiving} channel
 * @returns {Limit}
 */
function limitOf(channel) {
  return { kind: "Limit", channel: channel.number, next: channel.next, limit: channel.limit };
}

/**
 * @param {Mark} one
 * @param {Mark} other
 */
function sameMark(one, other) {
  return one.length === other.length && one.every(([number, place], i) => number === other[i][0] && place === other[i][1]);
}

/**
 * @param {Receiving} channel
 * @param {Part} head The first of its parts.
 * @param {Uint8Array} payload
 * @param {number} charge
 */
function wholeMessage(channel, head, payload, charge) {
  const kind = partKind(head);
  checkValue(kind, payload);
  return new Received(kind, channel.name, channel.number, payload, charge, partRole(head), head.number);
}

/**
 * @param {Uint8Array[]} pieces
 * @param {Uint8Array} last
 * @param {number} size  of all of them
 */
function assembled(pieces, last, size) {
  const out = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  out.set(last, at);
  return out;
}

/**
 * What is kept of a frame until its message is complete: a copy, unless it is most of the frame.
 * @param {Uint8Array} payload
 */
function kept(payload) {
  return 2 * payload.length < payload.buffer.byteLength ? payload.slice() : payload;
}

/** @param {string} text */
function outOfPlace(text) {
  return new ProtocolError(text, { code: "unexpected_frame", field: "flags" });
}

/**
 * What applications sent, of messages by their parts.
 *
 * @param {Uint8Array[][]} messages
 * @param {string} channel
 * @returns {UndeliveredMessage[]}
 */
function undelivered(messages, channel) {
  if (channel.startsWith(RESERVED)) return [];
  return messages
    .map(decodeMessage)
    .filter(([, role]) => role === Role.PLAIN)
    .map(([kind, , payload]) => ({ kind: "UndeliveredMessage", data: decodeValue(kind, payload), channel }));
}
