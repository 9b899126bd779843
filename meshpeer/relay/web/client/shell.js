// The shell around a Node: feeds it, does what it returns, keeps one timer. The same as meshpeer's
// shell.py. What it takes of a page (connections, sockets, the page's own events) comes in from
// outside or is looked up when it is used, so that it runs without a page as well.

import {
  ChannelClosed,
  ClosedError,
  ConnectionFailed,
  Forbidden,
  IdentityReplaced,
  MeshClosed,
  MeshError,
  MeshTimeout,
  MessageTooLarge,
  OVERHEAD,
  PeerClosed,
  PeerIdTaken,
  ProtocolError,
  RefusedError,
  Removed,
  RequestFailed,
  Role,
  SignalingBacklog,
  SignalingUnavailable,
  TooManyChannels,
  Undelivered,
  Kind,
  repr,
} from "./codec.js";
import { Deque, RELAY } from "./delivery.js";
import { FILE_CHANNEL, FILE_CHUNK } from "./files.js";
import { Announcer, Inbox } from "./inbox.js";
import { Node } from "./node.js";
import { Channel, ChannelBudget, Message, Peer, PeerRecord, SendLine, encodedMessage } from "./peer.js";
import { Alarm, Bell, Turns, abortable, report, scoped } from "./streams.js";

/** @import { IceCandidate, Join, LinkReport, Metadata, RoleValue, SignalOut, Welcome } from "./codec.js" */
/** @import { MeshConfig } from "./config.js" */
/** @import { Outgoing, Received } from "./delivery.js" */
/** @import { FileOffered, FileWithdrawn, Files } from "./files.js" */
/** @import { Arrived } from "./inbox.js" */
/** @import { CandidatePair, Operation } from "./link.js" */
/** @import { IceServer, NodeOutput, Path } from "./node.js" */
/** @import { ChannelOptions, FileOptions, PathTest, PeerHost, RawChannel } from "./peer.js" */
/** @import { Seat } from "./seat.js" */
/** @import { SignalingEvent } from "./transport.js" */

/** `new → joining → joined ⇄ reconnecting → closed`: how it stands with the relay.
    @typedef {"new" | "joining" | "joined" | "reconnecting" | "closed"} MeshState */

/**
 * What came of asking a STUN or TURN server. `took` is in seconds.
 * @typedef {{kind: "IceServerReport", url: string, outcome: string, detail: string,
 *   address: string | null, took: number}} IceServerReport
 */

/**
 * One RTCPeerConnection with a message channel.
 * @typedef {object} ShellConnection
 * @property {(generation: number) => Promise<string>} createOffer
 * @property {(generation: number, sdp: string) => Promise<string>} acceptOffer
 * @property {(generation: number, sdp: string) => Promise<void>} acceptAnswer
 * @property {(generation: number, candidates: IceCandidate[], end: boolean) => Promise<void>} addCandidates
 * @property {(nonce: number) => void} ping
 * @property {(data: Uint8Array) => void} sendFrame
 * @property {number} bufferedAmount
 * @property {(label: string, options: ChannelOptions) => RawChannel} openChannel
 * @property {() => Promise<any>} stats
 * @property {() => Promise<void> | void} close
 */

/**
 * What carries signals.
 * @typedef {object} ShellTransport
 * @property {string} url
 * @property {string} state
 * @property {Error | null} lastFailure
 * @property {() => number | null} retryIn  seconds to the next try; null while none is waited for
 * @property {(join: Join, signal: AbortSignal | null) => Promise<Welcome>} open
 * @property {(signal: SignalOut) => void} send
 * @property {(name: string | null, metadata: Metadata | null) => void} update
 * @property {(to: string) => number} forwardRoom
 * @property {(to: string, toIncarnation: string, data: Uint8Array) => void} forward
 * @property {(links: readonly LinkReport[]) => void} report
 * @property {(options: {networkChanged: boolean}) => void} doubt
 * @property {() => Promise<void>} close
 */

/**
 * What a shell is made of.
 * @typedef {object} ShellParts
 * @property {(told: {onEvent: (event: SignalingEvent) => void, onEnd: (error: Error) => void}) => ShellTransport} transport
 * @property {(observer: ShellObserver) => ShellConnection} connection
 * @property {(options: {chunk: number, onEvent: (event: FileOffered | FileWithdrawn) => void}) => Files} files
 * @property {(() => Promise<Seat>) | null} seat  asks for the seat of an earlier page
 * @property {boolean} isIdRandom  nobody asked for the peer id that the join has
 * @property {() => string} newPeerId
 * @property {EventTarget} target  whose listeners are told what happens
 * @property {number} lowBuffer  bytes in the buffer of the message channel at which the observer's
 *   bufferLow is called
 * @property {() => number} [random]
 */

/** ICE servers whose latest outcome is kept; the relay may name others each time. */
const MAX_SERVER_REPORTS = 100;
/** Bytes that a frame of messages may have: what follows waits for it on the path. */
const FRAME_SIZE = 32 * 1024;
/** Bytes that a loop of `Peer.send` gets accepted before it lets others have their turn. */
const SEND_BURST = 64 * 1024;
/** Seconds between two `BadInput` events about files and channels of a peer. */
const SHELL_COMPLAINS_EVERY = 1;
/** Plain data channels that one peer may have open. */
const MAX_PLAIN_CHANNELS = 256;
/** What happened last, for the diagnostics. */
const LATEST_EVENTS = 200;

/** The operations on one peer's connections, which run one after another. */
class Lane {
  /** @type {Extract<NodeOutput, {kind: "Run"}>[]} */
  queue = [];
  /** @type {ShellConnection | null} */
  connection = null;
  /** Incarnation and epoch of the connection. */
  incarnation = "";
  epoch = 0;
  /** Works on the queue. @type {Promise<void> | null} */
  worker = null;
  /** Ends the operation that runs early, as its connection is to be closed. @type {(() => void) | null} */
  endEarly = null;

  /** @param {{incarnation: string, epoch: number}} run */
  isOf({ incarnation, epoch }) {
    return this.connection !== null && this.incarnation === incarnation && this.epoch === epoch;
  }
}

const GIVEN_UP = Symbol("given up");

/** Brings what one connection tells to the shell, with the connection's name on it. */
class ShellObserver {
  #shell;
  #peerId;
  #incarnation;
  #epoch;

  /**
   * @param {Shell} shell
   * @param {{peerId: string, incarnation: string, epoch: number}} run
   */
  constructor(shell, { peerId, incarnation, epoch }) {
    this.#shell = shell;
    this.#peerId = peerId;
    this.#incarnation = incarnation;
    this.#epoch = epoch;
  }

  /** @returns {[peerId: string, incarnation: string, epoch: number]} */
  get #name() {
    return [this.#peerId, this.#incarnation, this.#epoch];
  }

  /** The message channel is open. */
  connectionOpened() {
    this.#shell.feed((node, now) => node.connectionOpened(...this.#name, now));
  }

  /**
   * The connection is over, without `close` having been called.
   * @param {string} reason
   */
  connectionLost(reason) {
    this.#shell.feed((node, now) => node.connectionLost(...this.#name, reason, now));
  }

  /** @param {Uint8Array} data */
  frameReceived(data) {
    this.#shell.feed((node, now) => node.frameReceived(this.#peerId, this.#incarnation, this.#epoch, data, now));
  }

  /** The message channel's buffer has fallen to the low mark. */
  bufferLow() {
    this.#shell.roomFor(this.#peerId);
  }

  /**
   * The other side opened a plain data channel.
   * @param {RawChannel} channel
   */
  channelOpened(channel) {
    this.#shell.channelOpened(this.#peerId, this.#incarnation, channel);
  }

  /** @param {string} state `gathering`, `checking` or `connected` */
  iceStateChanged(state) {
    this.#shell.feed((node, now) => node.iceState(...this.#name, state, now));
  }

  /** The STUN and TURN servers to ask, read when a generation begins to gather. */
  iceServers() {
    return this.#shell.iceServers;
  }

  /** Which candidates may be used. */
  get iceTransportPolicy() {
    return this.#shell.config.iceTransportPolicy;
  }

  /**
   * Local candidates that the description of this generation did not have.
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {boolean} end these are the last
   */
  candidatesFound(generation, candidates, end) {
    this.#shell.feed((node, now) => node.localCandidates(...this.#name, generation, candidates, end, now));
  }

  /** @param {IceServerReport} report */
  serverReported(report) {
    this.#shell.serverReported(report);
  }

  /**
   * Data goes over this pair from now on.
   * @param {number} generation
   * @param {CandidatePair} pair
   */
  pairSelected(generation, pair) {
    this.#shell.feed((node, now) => node.pairSelected(...this.#name, generation, pair, now));
  }

  /**
   * Something of the other side arrived; `answered`: it shows that the other side hears of us as well.
   * @param {boolean} answered
   */
  heard(answered) {
    this.#shell.feed((node, now) => node.heard(...this.#name, answered, now));
  }

  /**
   * The answer to `ping` arrived.
   * @param {number} nonce
   */
  ponged(nonce) {
    this.#shell.feed((node, now) => node.ponged(...this.#name, nonce, now));
  }

  /**
   * What the selected pair goes over has ended; the connection waits for another generation.
   * @param {string} reason
   */
  pathLost(reason) {
    this.#shell.feed((node, now) => node.pathLost(...this.#name, reason, now));
  }
}

/** Everything of a `PeerManager` but its public face. @implements {PeerHost} */
export class Shell {
  /** @type {MeshState} */
  state = "new";
  /** @type {Map<string, Peer>} */
  peers = new Map();
  /** What ended it, when it was not `close`. @type {Error | null} */
  error = null;
  /** The secret that lets a later page take over this peer id. @type {string | null} */
  token;
  /** Those of the configuration, and those that the relay named last. @type {readonly IceServer[]} */
  iceServers;
  /** What came of asking each ICE server the last time, by its URL. @type {Map<string, IceServerReport>} */
  serverReports = new Map();
  /** Rings when a peer came, went or changed its state, and at the end. */
  bell = new Bell();
  /** What happened last, and when. @type {{at: string, event: object}[]} */
  latest = [];
  /** @type {Files} */
  files;
  config;
  join;
  #parts;
  /** @type {Node | null} */
  #node = null;
  #transport;
  /** What came while the welcome was on its way here. @type {SignalingEvent[]} */
  #early = [];
  /** @type {Map<string, PeerRecord>} */
  #records = new Map();
  /** @type {Map<string, Lane>} */
  #lanes = new Map();
  #turns = new Turns();
  #alarm = new Alarm(() => this.now(), this.#turns, () => this.feed((node, now) => node.tick(now)));
  #inbox;
  #announcer;
  /** @type {Seat | null} */
  #seat = null;
  #requests = 0;
  /** Peers that something was just sent to, and whether there is more since. @type {Map<string, boolean>} */
  #corked = new Map();
  /** In the room: not before its welcome, nor when it is torn down. */
  #isLive = false;
  /** It is closed, or is to be. */
  #isStopping = false;
  #opening = new AbortController();
  /** @type {Promise<unknown> | null} */
  #starting = null;
  /** @type {Promise<void> | null} */
  #closing = null;
  /** Aborted when whoever closes does not want to wait for what was sent to arrive. */
  #hurry = new AbortController();
  #ignorePage = () => {};
  /** The listeners to messages: ends it. @type {(() => void) | null} */
  #unlisten = null;
  #signaling = { since: Date.now(), reason: "not started" };
  /** The name that the relay gives us, whatever we say. @type {string | null} */
  #givenName = null;

  /**
   * @param {Join} join
   * @param {MeshConfig} config
   * @param {ShellParts} parts
   */
  constructor(join, config, parts) {
    this.join = join;
    this.config = config;
    this.token = join.token;
    this.iceServers = config.iceServers;
    this.#parts = parts;
    this.#transport = this.#newTransport();
    this.#announcer = new Announcer(config.maxPendingEvents, parts.target);
    this.#inbox = new Inbox(
      config.receiveWindow,
      ({ peer, received: { channel, request }, path, at }, data) =>
        new Message(this, { sender: peer, data, channel, path, receivedAt: at, request }),
      (peer, received) => this.#taken(peer, received),
    );
    this.files = parts.files({
      chunk: Math.min(FILE_CHUNK, config.maxMessageSize),
      onEvent: (event) => this.#tell(event),
    });
  }

  #newTransport() {
    return this.#parts.transport({
      onEvent: (event) => this.#signaled(event),
      onEnd: (error) => this.#fail(error),
    });
  }

  // --- life ---

  /**
   * Enter the room. See `PeerManager.start`.
   * @param {AbortSignal | null} signal
   */
  async start(signal) {
    if (this.state !== "new") {
      throw new MeshClosed(`a PeerManager starts once; this one is ${this.state}`, { reason: this.state });
    }
    this.state = "joining";
    const starting = this.#enter(signal);
    this.#starting = starting.catch(() => {});
    return starting;
  }

  /** @param {AbortSignal | null} signal */
  async #enter(signal) {
    const abort = () => this.#opening.abort(signal?.reason);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
    /** @type {Welcome} */
    let welcome;
    try {
      welcome = await this.#openInTime();
      if (this.#isStopping) throw this.closedError();
    } catch (error) {
      if (error instanceof MeshError && !this.#isStopping) this.error = error;
      await this.#transport.close().catch(report);
      this.#leaveSeat(error);
      this.#ended("not started");
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
    this.#node = new Node(this.config, {
      peerId: welcome.peerId,
      incarnation: this.join.incarnation,
      random: this.#parts.random ?? Math.random,
    });
    this.#isLive = true;
    this.#ignorePage = this.#watchPage();
    for (const event of [welcome, ...this.#early.splice(0)]) this.#signaled(event);
    if (this.#isStopping) {
      await this.close();
      throw this.closedError();
    }
  }

  /** @returns {Promise<Welcome>} */
  #openInTime() {
    const { joinTimeout } = this.config;
    const late = () => {
      const why = this.#transport.lastFailure;
      if (why instanceof RefusedError) return why;
      return new SignalingUnavailable(
        `could not enter room ${repr(this.join.room)} within ${joinTimeout} s: ${why?.message ?? "no answer"}`,
      );
    };
    return scoped({ timeout: joinTimeout, signal: this.#opening.signal, late }, (signal) =>
      this.#openSeat(/** @type {AbortSignal} */ (signal)),
    );
  }

  /** @param {AbortSignal} signal */
  async #openSeat(signal) {
    const { seat, isIdRandom, newPeerId } = this.#parts;
    const open = () => abortable(this.#transport.open(this.join, signal), signal);
    if (seat === null) return open();
    const take = async () => {
      // Waited for when we are aborted as well, or nobody would put it down. It takes no time, or little.
      this.#seat = await seat();
      signal.throwIfAborted();
      return this.#seat;
    };
    const { peerId, resumeToken, release } = await take();
    this.join = { ...this.join, peerId: peerId ?? this.join.peerId, token: resumeToken };
    try {
      return await open();
    } catch (error) {
      // What this tab had may be somebody else's by now. Who asked for an id gets that or none.
      if (signal.aborted || !isSeatRefused(error) || !isIdRandom || resumeToken === null) throw error;
      release();
      await take();
      await this.#transport.close();
      this.#transport = this.#newTransport();
      this.join = { ...this.join, peerId: newPeerId(), token: null };
      return open();
    }
  }

  /**
   * Leave the room. See `PeerManager.close`.
   * @param {AbortSignal | null} [signal]
   */
  async close(signal = null) {
    const hurry = () => this.#hurry.abort();
    if (signal?.aborted) hurry();
    else signal?.addEventListener("abort", hurry, { once: true });
    this.#closing ??= this.#close();
    try {
      await this.#closing;
    } finally {
      signal?.removeEventListener("abort", hurry);
    }
    signal?.throwIfAborted();
  }

  async #close() {
    this.#isStopping = true;
    if (this.state === "new") {
      this.state = "closed";
      await this.#transport.close();
      this.#ended("closed");
    }
    if (!this.#isLive) {
      const closed = new MeshClosed("it was closed before it had entered the room", { reason: "closing" });
      this.#opening.abort(this.error ?? closed);
      await this.#starting;
      return;
    }
    for (const record of this.#records.values()) record.bell.ring();
    this.bell.ring();
    await null; // what is being done now is done first
    try {
      if (this.error === null) await this.#confirmAll();
    } catch (error) {
      report(error);
    }
    await this.#tearDown();
  }

  async #tearDown() {
    this.#isLive = false;
    this.#ignorePage();
    const { error } = this;
    const reason = error === null ? "closed" : error instanceof ClosedError ? error.reason : "failed";
    // Before the peers go: who receives a file is told of our end, not of theirs.
    this.files.end(error);
    const leaves = !(error instanceof IdentityReplaced || error instanceof Removed);
    try {
      this.do(this.node.close(this.now(), { leaves }));
    } catch (fault) {
      report(fault);
    }
    const lanes = [...this.#lanes.values()];
    for (const lane of lanes) lane.endEarly?.();
    const ends = [this.#transport.close(), this.files.close(), ...lanes.map((lane) => lane.worker)];
    for (const end of await Promise.allSettled(ends)) if (end.status === "rejected") report(end.reason);
    for (const { connection } of lanes) if (connection !== null) await this.#closeConnection(connection);
    this.#leaveSeat(error);
    this.#ended(reason);
  }

  /**
   * Who comes after us in this tab may be the same peer again, unless the id is somebody else's.
   * @param {unknown} error
   */
  #leaveSeat(error) {
    const isLost = isSeatRefused(error) || error instanceof IdentityReplaced || error instanceof Removed;
    if (isLost) this.#seat?.release();
    else this.#seat?.putDown();
  }

  /** @param {string} reason */
  #ended(reason) {
    this.state = "closed";
    this.#isStopping = true;
    this.#alarm.set(null);
    this.#tell({ kind: "Closed", reason, error: this.error });
    this.#inbox.end(this.error);
    this.#announcer.end();
    this.bell.ring();
  }

  /**
   * The relay ended us, or the way to it did.
   * @param {Error} error
   */
  #fail(error) {
    if (this.#isStopping) return;
    if (!(error instanceof MeshError)) {
      this.#crash(error);
      return;
    }
    this.error = error;
    if (error instanceof IdentityReplaced) this.#tell({ kind: "Replaced", peerId: this.join.peerId });
    void this.close();
  }

  /**
   * A fault of the code here: reported, and all is closed.
   * @param {unknown} error
   */
  #crash(error) {
    report(error);
    if (this.#isStopping) return;
    this.error = new MeshClosed(`this PeerManager failed: ${error}`, { reason: "failed" });
    void this.close();
  }

  /** What a call on a closed manager throws. */
  closedError() {
    const { error } = this;
    if (error instanceof ClosedError) {
      return new /** @type {typeof ClosedError} */ (error.constructor)(error.message, { reason: error.reason });
    }
    const state = this.#isStopping && this.state !== "closed" ? "closing" : this.state;
    const why = error === null ? "" : ` (${error.message})`;
    return new MeshClosed(`this PeerManager is ${state}${why}`, { reason: state });
  }

  /** Throws `MeshClosed` when it is not started, or is closed. */
  checkRunning() {
    if (this.state === "new" || this.state === "closed" || this.#isStopping) throw this.closedError();
  }

  // --- signalling ---

  /** @param {SignalingEvent} event */
  #signaled(event) {
    if (this.#node === null) {
      this.#early.push(event);
      return;
    }
    const { peerId } = this.join;
    switch (event.kind) {
      case "SignalingLost": {
        const { reason, retryIn } = event;
        this.#signalingIs("reconnecting", reason, retryIn);
        this.feed((node, now) => node.signalingLost(now));
        break;
      }
      case "Welcome":
        this.token = event.token;
        this.join = { ...this.join, peerId: event.peerId };
        this.#givenName = event.name;
        this.#seat?.keep(event.token, event.peerId);
        this.#signalingIs("joined", event.resumed ? "resumed" : "joined", null);
        this.#tell({
          kind: "Joined",
          peerId: event.peerId,
          room: event.room,
          incarnation: event.incarnation,
          resumed: event.resumed,
        });
        this.feed((node, now) => node.signaling(event, now));
        break;
      case "FrameIn":
        this.feed((node, now) => node.forwarded(event.sender, event.incarnation, event.data, now));
        break;
      case "ForwardRoom":
        this.roomFor(event.peerId);
        break;
      default:
        this.feed((node, now) => node.signaling(event, now));
    }
  }

  /**
   * @param {"joined" | "reconnecting"} state
   * @param {string} reason
   * @param {number | null} retryIn
   */
  #signalingIs(state, reason, retryIn) {
    if (!this.#isStopping) this.state = state;
    this.#signaling = { since: Date.now(), reason };
    this.#tell({ kind: "SignalingChanged", state, reason, retryIn });
  }

  /** Our display name, as the others see it. */
  get name() {
    return this.#givenName ?? this.join.name;
  }

  /** How it stands with the relay. */
  signalingStatus() {
    const { since, reason } = this.#signaling;
    const { url, state, lastFailure } = this.#transport;
    return {
      url,
      room: this.join.room,
      peerId: this.join.peerId,
      incarnation: this.join.incarnation,
      state: this.state,
      transport: state,
      reason,
      since: new Date(since).toISOString(),
      // The loss is told once; the tries go on, each with a wait of its own.
      retryIn: this.state === "reconnecting" ? this.#transport.retryIn() : null,
      lastFailure: lastFailure?.message ?? null,
    };
  }

  /**
   * Tell the room a new name or metadata.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.checkRunning();
    // Before the seat is asked for there is nobody to tell: it is asked for under the new name.
    if (this.#transport.state !== "new") this.#transport.update(name, metadata);
    this.join = { ...this.join, name: name ?? this.join.name, metadata: metadata ?? this.join.metadata };
  }

  // --- the page ---

  /** Look at what the page's own events say of the network. Returns what ends it. */
  #watchPage() {
    const looking = new AbortController();
    const { signal } = looking;
    const networkChanged = () => this.#guard(() => this.addressesChanged());
    const isBack = () => {
      this.#guard(() => {
        this.#transport.doubt({ networkChanged: false });
        for (const { id } of this.peers.values()) this.do(this.node.ping(id, ++this.#recordOf(id).pingsSent));
      });
      // Timers may have been held back; what waits is heard before somebody is taken for silent.
      this.#alarm.look();
    };
    const page = globalThis.document;
    const { connection } = /** @type {{connection?: EventTarget & {type?: string}}} */ (globalThis.navigator ?? {});
    globalThis.addEventListener?.("online", networkChanged, { signal });
    globalThis.addEventListener?.(
      "pageshow",
      (/** @type {PageTransitionEvent} */ event) => {
        if (event.persisted) networkChanged();
      },
      { signal },
    );
    page?.addEventListener("visibilitychange", () => page.visibilityState === "visible" && isBack(), { signal });
    page?.addEventListener("resume", isBack, { signal });
    let type = connection?.type;
    connection?.addEventListener?.(
      "change",
      () => {
        // It also tells of each new guess at the speed.
        if (connection.type === type) return;
        type = connection.type;
        networkChanged();
      },
      { signal },
    );
    return () => looking.abort();
  }

  /** The network is another one now, or is there again. */
  addressesChanged() {
    if (!this.#isLive) return;
    this.#transport.doubt({ networkChanged: true });
    this.feed((node, now) => node.addressesChanged(now));
  }

  // --- driving the node ---

  /** Seconds, on a clock that only goes forward. */
  now() {
    return performance.now() / 1000;
  }

  /** There is one from the first welcome on. */
  get node() {
    return /** @type {Node} */ (this.#node);
  }

  /** @param {() => void} step */
  #guard(step) {
    try {
      step();
    } catch (error) {
      this.#crash(error);
    }
  }

  /**
   * Tell the node something, and do what it says.
   * @param {(node: Node, now: number) => NodeOutput[]} tell
   */
  feed(tell) {
    if (this.#node === null || this.state === "closed") return;
    try {
      this.do(tell(this.#node, this.now()));
    } catch (error) {
      this.#crash(error);
    }
  }

  /**
   * Do what the node said.
   * @param {readonly NodeOutput[]} outputs
   */
  do(outputs) {
    for (const output of outputs) {
      switch (output.kind) {
        case "Deliver":
          this.#deliver(output);
          break;
        case "Ready":
          this.pump(output.peerId);
          this.#records.get(output.peerId)?.bell.ring();
          break;
        case "SendFrame":
          this.#sendFrame(output.peerId, output.path, output.data);
          break;
        case "Ponged": {
          const record = this.#recordOf(output.peerId);
          // What was never asked is no answer: a connection's own ping, say, answered over the relay.
          if (output.nonce > record.pingsSent) break;
          record.pingsAnswered = Math.max(record.pingsAnswered, output.nonce);
          record.bell.ring();
          break;
        }
        case "RequestsRefused":
          this.#requestsRefused(output.peerId, output.numbers);
          break;
        case "Tell":
          this.#told(output.event);
          break;
        case "Signal":
          this.#sendSignal(output.message);
          break;
        case "Run":
          this.#enqueue(output);
          break;
        case "Probe":
          this.#connection(output.peerId, output.epoch)?.ping(output.nonce);
          break;
        case "UseServers":
          this.iceServers = [...this.config.iceServers, ...output.servers];
          break;
        case "ReportLinks":
          this.#transport.report(output.links);
      }
    }
    this.#alarm.set(this.node.nextDeadline());
  }

  /** When the node wants to be called next, in seconds from now; null when it doesn't. */
  get nextDeadline() {
    const at = this.#node?.nextDeadline() ?? null;
    return at === null ? null : at - this.now();
  }

  /**
   * @param {string} peerId
   * @param {number} path
   * @param {Uint8Array} data
   */
  #sendFrame(peerId, path, data) {
    if (path === RELAY) {
      const peer = this.peers.get(peerId);
      if (peer !== undefined) this.#transport.forward(peerId, peer.incarnation, data);
    } else {
      this.#connection(peerId, path)?.sendFrame(data);
    }
  }

  /**
   * Send what there is, or with the rest of what this turn of the event loop brings.
   * @param {string} peerId
   */
  #sendSoon(peerId) {
    if (this.#corked.has(peerId)) {
      this.#corked.set(peerId, true);
      return;
    }
    if (!this.#corked.size) this.#turns.after(() => this.#uncork());
    this.#corked.set(peerId, false);
    this.pump(peerId);
  }

  #uncork() {
    // Who had more to say is likely to go on: what it says next is put together as well.
    for (const [peerId, hasMore] of this.#corked) {
      if (hasMore) this.#corked.set(peerId, false);
      else this.#corked.delete(peerId);
    }
    if (this.#corked.size) this.#turns.after(() => this.#uncork());
    for (const peerId of [...this.#corked.keys()]) this.#guard(() => this.pump(peerId));
  }

  /**
   * The path to a peer takes more.
   * @param {string} peerId
   */
  roomFor(peerId) {
    if (this.#node !== null) this.#guard(() => this.pump(peerId));
  }

  /**
   * Send what is ready to a peer, as far as its path takes it.
   * @param {string} peerId
   */
  pump(peerId) {
    const peer = this.peers.get(peerId);
    if (peer === undefined) return;
    const delivery = this.node.delivery(peerId);
    const path = delivery.out;
    if (path === null) return;
    if (path === RELAY) {
      const transport = this.#transport;
      for (let room = transport.forwardRoom(peerId); room > 0; room = transport.forwardRoom(peerId)) {
        const data = delivery.pull(Math.min(room, FRAME_SIZE));
        if (data === null) return;
        transport.forward(peerId, peer.incarnation, data);
      }
      return;
    }
    const connection = this.#connection(peerId, path);
    if (connection === null) return;
    const most = 2 * this.#parts.lowBuffer;
    let hasSpoken = false;
    while (connection.bufferedAmount <= most) {
      const data = delivery.pull(FRAME_SIZE);
      if (data === null) break;
      connection.sendFrame(data);
      hasSpoken = true;
    }
    if (hasSpoken) this.node.spoke(peerId, this.now());
  }

  /**
   * @param {string} peerId
   * @param {number} epoch
   */
  #connection(peerId, epoch) {
    const lane = this.#lanes.get(peerId);
    return lane !== undefined && lane.epoch === epoch ? lane.connection : null;
  }

  /** @param {SignalOut} message */
  #sendSignal(message) {
    try {
      this.#transport.send(message);
    } catch (error) {
      // Too many wait: the attempt it belongs to runs into its deadline, and is made again. Or the
      // transport has ended, which `onEnd` says.
      if (!(error instanceof SignalingBacklog || error instanceof MeshClosed)) throw error;
    }
  }

  /**
   * An ICE server was asked by a connection.
   * @param {IceServerReport} report
   */
  serverReported(report) {
    const { url, outcome, detail } = report;
    const before = this.serverReports.get(url);
    this.serverReports.set(url, report);
    if (this.serverReports.size > MAX_SERVER_REPORTS) {
      for (const oldest of this.serverReports.keys()) {
        this.serverReports.delete(oldest);
        break;
      }
    }
    if (before?.outcome !== outcome || before.detail !== detail) this.#tell(report);
  }

  /**
   * Begin an ICE restart with a peer, or with all.
   * @param {string | null} peerId
   */
  restartIce(peerId) {
    this.feed((node, now) => node.forceRestart(peerId, now));
  }

  /** @param {string} peerId */
  #recordOf(peerId) {
    return /** @type {PeerRecord} */ (this.#records.get(peerId));
  }

  /**
   * What is kept of this incarnation of a peer, while it is there.
   * @param {string} peerId
   * @param {string} incarnation
   */
  #record(peerId, incarnation) {
    return this.peers.get(peerId)?.incarnation === incarnation ? this.#recordOf(peerId) : null;
  }

  // --- operations on connections ---

  /** @param {Extract<NodeOutput, {kind: "Run"}>} run */
  #enqueue(run) {
    let lane = this.#lanes.get(run.peerId);
    if (lane === undefined) {
      lane = new Lane();
      this.#lanes.set(run.peerId, lane);
    }
    if (run.operation.kind === "CloseConnection") {
      // What is still to be done for it is pointless now, and what is being done as well.
      lane.queue = lane.queue.filter((each) => each.incarnation !== run.incarnation || each.epoch !== run.epoch);
      if (lane.isOf(run)) lane.endEarly?.();
      this.#record(run.peerId, run.incarnation)?.bell.ring();
    }
    lane.queue.push(run);
    lane.worker ??= this.#work(run.peerId, lane);
  }

  /**
   * @param {string} peerId
   * @param {Lane} lane
   */
  async #work(peerId, lane) {
    await null; // what the node said is all done first
    try {
      for (let run = lane.queue.shift(); run !== undefined; run = lane.queue.shift()) {
        if (run.operation.kind !== "CloseConnection") {
          await this.#operate(lane, run);
        } else if (lane.connection !== null && lane.isOf(run)) {
          await this.#closeConnection(lane.connection);
          lane.connection = null;
        }
      }
    } catch (error) {
      this.#crash(error);
    }
    lane.worker = null;
    if (lane.connection === null && !this.peers.has(peerId)) this.#lanes.delete(peerId);
  }

  /**
   * @param {Lane} lane
   * @param {Extract<NodeOutput, {kind: "Run"}>} run
   */
  async #operate(lane, run) {
    const { peerId, incarnation, epoch, operation } = run;
    let sdp;
    try {
      sdp = await this.#runOperation(lane, run);
    } catch (error) {
      if (error === GIVEN_UP) return;
      if (!(error instanceof MeshError)) report(error); // a fault, but no reason to end for
      const why = error instanceof MeshError ? error : new ConnectionFailed(String(error));
      this.feed((node, now) => node.operationFailed(peerId, incarnation, epoch, operation, why, now));
      return;
    }
    if (typeof sdp !== "string") return;
    const made = sdp;
    if (operation.kind === "MakeOffer" || operation.kind === "AcceptOffer") {
      this.feed((node, now) => node.operationDone(peerId, incarnation, epoch, operation, made, now));
    }
  }

  /**
   * The local description, when the operation makes one. Throws `GIVEN_UP` when it is.
   * @param {Lane} lane
   * @param {Extract<NodeOutput, {kind: "Run"}>} run
   * @returns {Promise<string | void>}
   */
  async #runOperation(lane, run) {
    const { peerId, incarnation, epoch, operation } = run;
    const isFirst = (operation.kind === "MakeOffer" || operation.kind === "AcceptOffer") && !operation.generation;
    if (isFirst) {
      if (lane.connection !== null) throw new Error("the old connection is closed before the new one speaks");
      if (!this.#isLive || this.#record(peerId, incarnation) === null) return; // it left meanwhile
      lane.connection = this.#parts.connection(new ShellObserver(this, run));
      lane.incarnation = incarnation;
      lane.epoch = epoch;
    }
    if (!lane.isOf(run)) return;
    const connection = /** @type {ShellConnection} */ (lane.connection);
    /** @type {Promise<never>} */
    const end = new Promise((_, reject) => (lane.endEarly = () => reject(GIVEN_UP)));
    try {
      // Nothing ends a promise: one that is given up is not listened to any more.
      return await Promise.race([end, Shell.#operation(connection, operation)]);
    } finally {
      lane.endEarly = null;
    }
  }

  /**
   * @param {ShellConnection} connection
   * @param {Operation} operation
   * @returns {Promise<string | void>}
   */
  static async #operation(connection, operation) {
    switch (operation.kind) {
      case "MakeOffer":
        return connection.createOffer(operation.generation);
      case "AcceptOffer":
        return connection.acceptOffer(operation.generation, operation.sdp);
      case "AcceptAnswer":
        return connection.acceptAnswer(operation.generation, operation.sdp);
      case "AddCandidates":
        return connection.addCandidates(operation.generation, operation.candidates, operation.end);
    }
  }

  /** @param {ShellConnection} connection */
  async #closeConnection(connection) {
    const late = new MeshTimeout(`a connection did not close within ${this.config.closeTimeout} s`);
    try {
      await scoped({ timeout: this.config.closeTimeout, late: () => late }, (signal) =>
        abortable(Promise.resolve(connection.close()), signal),
      );
    } catch (error) {
      report(error); // whatever it is, the connection is done with
    }
  }

  /**
   * What the connection to a peer says of itself; null when there is none.
   * @param {string} peerId
   */
  async connectionStats(peerId) {
    return (await this.#lanes.get(peerId)?.connection?.stats()) ?? null;
  }

  // --- events ---

  /** @param {any} event */
  #told(event) {
    switch (event.kind) {
      case "PeerJoined": {
        const { peerId, incarnation, name, metadata } = event;
        const record = new PeerRecord(name, metadata, new ChannelBudget(this.config.receiveWindow));
        const peer = new Peer(this, peerId, incarnation, record);
        this.#records.set(peerId, record);
        this.peers.set(peerId, peer);
        this.files.peerJoined(peer);
        break;
      }
      case "PeerUpdated": {
        const record = this.#recordOf(event.peerId);
        record.name = event.name;
        record.metadata = event.metadata;
        break;
      }
      case "MessagesUndelivered":
        for (const each of event.messages) this.#recordOf(event.peerId).undelivered.push(each);
        break;
      case "PeerLeft":
        this.#peerLeft(event.peerId, event.reason);
        break;
      case "PeerStateChanged":
        this.#recordOf(event.peerId).bell.ring();
        // Was it that peer, or is it the network?
        if (event.state === "disconnected") this.#transport.doubt({ networkChanged: false });
        break;
      case "ConnectionReport":
        this.#recordOf(event.peerId).bell.ring();
    }
    this.#tell(event);
  }

  /**
   * @param {string} peerId
   * @param {string} reason
   */
  #peerLeft(peerId, reason) {
    const peer = /** @type {Peer} */ (this.peers.get(peerId));
    const record = this.#recordOf(peerId);
    this.peers.delete(peerId);
    this.#records.delete(peerId);
    record.closedReason = reason;
    for (const { reject } of record.requests.values()) reject(this.#over(peer, record));
    this.#inbox.peerLeft(peer);
    this.files.peerLeft(peer);
    for (const channel of [...record.channels]) channel.abandon(`the peer is gone (${reason})`);
    record.bell.ring();
    const lane = this.#lanes.get(peerId);
    if (lane !== undefined && lane.worker === null && lane.connection === null) this.#lanes.delete(peerId);
  }

  /** @param {any} event */
  #tell(event) {
    this.latest.push({ at: new Date().toISOString(), event: briefly(event) });
    if (this.latest.length > LATEST_EVENTS) this.latest.shift();
    this.bell.ring();
    this.#announcer.tell(event);
  }

  /** A stream of every event from now on. */
  events() {
    return this.#announcer.events();
  }

  // --- messages ---

  /**
   * A stream of messages: what nobody has asked for yet, then everything from now on.
   * @param {string | null} channel
   */
  messages(channel) {
    const stream = this.#inbox.reader(channel);
    if (this.state === "closed") stream.end(this.error);
    return stream;
  }

  /**
   * From now on `told` is called with each message, in its turn among the events. Not to be called
   * again before `unlisten`.
   * @param {(message: Message) => void} told
   */
  listen(told) {
    /** @type {Deque<Arrived>} */
    const waiting = new Deque();
    let isListening = true;
    const next = () => {
      if (isListening && waiting.size) told(this.#inbox.taken(waiting.shift()));
    };
    const stop = this.#inbox.listen({
      isEnded: false,
      put: (arrived) => {
        waiting.push(arrived);
        this.#announcer.later(next);
      },
    });
    this.#unlisten = () => {
      isListening = false;
      stop(waiting);
    };
  }

  /** Nobody listens any more: messages wait for who asks next. */
  unlisten() {
    this.#unlisten?.();
    this.#unlisten = null;
  }

  /** @param {{peerId: string, path: Path, messages: Received[]}} output */
  #deliver({ peerId, path, messages }) {
    const peer = /** @type {Peer} */ (this.peers.get(peerId));
    const record = this.#recordOf(peerId);
    // Answers have somebody who waits for them, and files are written where they go.
    let plain = messages;
    if (messages.some(({ role, channel }) => role > Role.REQUEST || channel === FILE_CHANNEL)) {
      plain = messages.filter((each) => each.role <= Role.REQUEST && each.channel !== FILE_CHANNEL);
      for (const message of messages) {
        if (message.role > Role.REQUEST) this.#answeredBy(peer, record, message);
        else if (message.channel === FILE_CHANNEL) this.#ofAFile(peer, record, message);
      }
    }
    this.#inbox.deliver(peer, path, plain);
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Received} answer
   */
  #answeredBy(peer, record, answer) {
    const waiting = record.requests.get(answer.request);
    if (answer.role === Role.REPLY) waiting?.resolve(answer.value());
    else waiting?.reject(new RequestFailed(/** @type {string} */ (answer.value())));
    this.#taken(peer, answer);
  }

  /**
   * @param {string} peerId
   * @param {readonly number[]} numbers
   */
  #requestsRefused(peerId, numbers) {
    for (const number of numbers) {
      this.#recordOf(peerId).requests.get(number)?.reject(
        new MessageTooLarge(
          `${repr(peerId)} does not take this request: it is larger than its limit, or on one channel more ` +
            "than it has room for",
        ),
      );
    }
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Received} message
   */
  #ofAFile(peer, record, message) {
    const taken = () => this.#taken(peer, message);
    const answer =
      message.role === Role.REQUEST
        ? {
            reply: (/** @type {unknown} */ data) => this.#answerFile(peer, message, data, Role.REPLY),
            error: (/** @type {string} */ text) => this.#answerFile(peer, message, text, Role.ERROR),
          }
        : null;
    try {
      if (answer !== null) this.files.request(peer, message.value(), answer);
      else if (message.valueKind === Kind.BYTES) this.files.data(peer, message.payload, taken);
      else throw new ProtocolError("a piece of a file is bytes", { code: "bad_file", field: "payload" });
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#complain(peer.id, record, error);
      if (answer !== null) answer.error(error.message);
      else taken();
    }
  }

  /**
   * Answer a request about a file; dropped when the peer is gone.
   *
   * The request counts as taken when its answer is accepted, which waits for room like all that goes
   * to this peer: so no peer can have answers pile up that it does not read.
   * @param {Peer} peer
   * @param {Received} request
   * @param {unknown} data
   * @param {RoleValue} role
   */
  #answerFile(peer, request, data, role) {
    const present = this.peers.get(peer.id); // it may have left and come back meanwhile
    if (!this.#isLive || present?.incarnation !== peer.incarnation) return;
    const answer = encodedMessage(data, FILE_CHANNEL, this.maxMessageSize, role, request.request);
    this.send(present, answer, null).then(
      () => this.#taken(peer, request),
      (error) => {
        if (error instanceof ClosedError) return;
        if (error instanceof MessageTooLarge || error instanceof TooManyChannels) this.#taken(peer, request);
        else this.#crash(error);
      },
    );
  }

  /**
   * @param {Peer} peer
   * @param {Blob} blob
   * @param {FileOptions} options
   */
  async sendFile(peer, blob, options) {
    this.#present(peer);
    const wire = {
      /** @type {(data: unknown, options: {signal: AbortSignal}) => Promise<any>} */
      request: (data, { signal }) => this.request(peer, data, { channel: FILE_CHANNEL, timeout: null, signal }),
      /** @type {(data: Uint8Array, options: {signal: AbortSignal}) => Promise<void>} */
      send: async (data, { signal }) =>
        this.send(peer, encodedMessage(data, FILE_CHANNEL, this.maxMessageSize), signal),
    };
    return this.files.send(peer, wire, blob, options);
  }

  /**
   * @param {Peer} peer
   * @param {Received} message
   */
  #taken(peer, message) {
    if (this.#node === null || this.state === "closed") return;
    const outputs = this.#node.taken(peer.id, peer.incarnation, message.number, message.charge);
    if (outputs.length) this.#guard(() => this.do(outputs));
  }

  // --- what a Peer asks for ---

  /**
   * How it stands with a peer that is there.
   * @param {string} peerId
   */
  report(peerId) {
    return this.node.report(peerId, this.now());
  }

  /**
   * The figures of a peer that is there, for the statistics.
   * @param {string} peerId
   */
  counts(peerId) {
    const link = this.node.link(peerId);
    const delivery = this.node.delivery(peerId);
    const { history } = link;
    return {
      epoch: link.epoch,
      generation: link.generation,
      attempts: history.attempts,
      connections: history.connections,
      failures: link.failures,
      connectTime: history.connections ? history.connectTime : null,
      restarts: history.restarts,
      fallbacks: history.fallbacks,
      failure: history.failure,
      messagesSent: delivery.messagesSent,
      messagesDirect: delivery.messagesDirect,
      messagesReceived: delivery.messagesReceived,
      bytesSent: delivery.bytesSent,
      bytesReceived: delivery.bytesReceived,
    };
  }

  /** The largest message that may be sent, in bytes. */
  get maxMessageSize() {
    return this.config.maxMessageSize;
  }

  /** @param {Peer} peer */
  stateOf(peer) {
    return this.node.stateOf(peer.id);
  }

  /** @param {Peer} peer */
  iceStateOf(peer) {
    return this.node.iceStateOf(peer.id);
  }

  /** @param {Peer} peer */
  pathOf(peer) {
    return this.node.pathOf(peer.id);
  }

  /** @param {Peer} peer */
  rttOf(peer) {
    return this.node.rttOf(peer.id);
  }

  /**
   * Have a message accepted as soon as its channel has room. See `Peer.send`.
   * @param {Peer} peer
   * @param {Outgoing} message
   * @param {AbortSignal | null} signal
   */
  async send(peer, message, signal) {
    signal?.throwIfAborted();
    const record = this.#present(peer);
    const { channel } = message;
    let line = record.lines.get(channel);
    if (line === undefined) {
      if (record.burst < SEND_BURST && this.#accept(peer, record, message)) return;
      line = new SendLine();
      record.lines.set(channel, line);
    }
    await line.enter(signal);
    try {
      if (record.burst >= SEND_BURST) {
        record.burst = 0;
        await this.#turns.next(); // a loop that only sends would keep everybody else out
        signal?.throwIfAborted();
      }
      while (!this.#accept(peer, this.#still(peer, record), message)) await record.bell.wait(signal);
    } finally {
      line.leave();
      if (line.isFree) record.lines.delete(channel);
    }
  }

  /**
   * Take it on now, if there is room.
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Outgoing} message
   */
  #accept(peer, record, message) {
    const delivery = this.node.delivery(peer.id);
    if (!delivery.hasRoom(message.channel)) return false;
    delivery.accept(message);
    record.burst += message.size + OVERHEAD;
    this.#sendSoon(peer.id);
    return true;
  }

  /**
   * Like `#present`, for somebody who has been waiting since the peer was.
   * @param {Peer} peer
   * @param {PeerRecord} record
   */
  #still(peer, record) {
    if (record.closedReason !== null) throw this.#over(peer, record);
    return this.#present(peer);
  }

  /**
   * What those are told who have been waiting for a peer that is gone.
   * @param {Peer} peer
   * @param {PeerRecord} record
   */
  #over(peer, record) {
    if (this.#isStopping) return this.closedError();
    const { undelivered: messages } = record;
    if (!messages.length) return this.#gone(peer);
    const reason = record.closedReason ?? "closed";
    return new Undelivered(
      `peer ${repr(peer.id)} is gone (${reason}), and ${messages.length} messages to it were not acknowledged`,
      { reason, messages },
    );
  }

  /**
   * Send a request, and wait for its answer. See `Peer.request`.
   * @param {Peer} peer
   * @param {unknown} data
   * @param {{channel: string, timeout: number | null, signal: AbortSignal | null}} options
   * @returns {Promise<any>}
   */
  async request(peer, data, { channel, timeout, signal }) {
    const record = this.#present(peer);
    // Not by peer: one that left may come back, and its late answers with it.
    const number = ++this.#requests;
    const message = encodedMessage(data, channel, this.maxMessageSize, Role.REQUEST, number);
    const late = () => new MeshTimeout(`${repr(peer.id)} did not answer within ${timeout} s`);
    return scoped({ timeout, signal, late }, async (scope) => {
      const answer = new Promise((resolve, reject) => record.requests.set(number, { resolve, reject }));
      answer.catch(() => {}); // it may come when nobody waits for it any more
      try {
        await this.send(peer, message, scope);
        return await abortable(answer, scope);
      } finally {
        record.requests.delete(number);
      }
    });
  }

  /** @param {Peer} peer */
  #present(peer) {
    if (!this.#isLive || this.#isStopping) this.checkRunning();
    if (this.peers.get(peer.id) !== peer) throw this.#gone(peer);
    return this.#recordOf(peer.id);
  }

  /** @param {Peer} peer */
  #gone(peer) {
    const reason = peer.closedReason ?? "closed";
    return new PeerClosed(`peer ${repr(peer.id)} is gone (${reason})`, { reason });
  }

  /**
   * Wait until everything accepted so far has arrived.
   * @param {Peer} peer
   * @param {{timeout: number | null, signal: AbortSignal | null}} options
   */
  async flush(peer, { timeout, signal }) {
    this.#present(peer);
    const late = () =>
      new MeshTimeout(`${repr(peer.id)} did not confirm within ${timeout} s that everything has arrived`);
    await scoped({ timeout, signal, late }, (scope) => this.#confirm(peer, scope));
  }

  /**
   * Wait until all that is accepted now has arrived.
   * @param {Peer} peer
   * @param {AbortSignal | null} signal
   */
  async #confirm(peer, signal) {
    const record = this.#record(peer.id, peer.incarnation);
    if (record === null) throw this.#gone(peer);
    const delivery = this.node.delivery(peer.id);
    const mark = delivery.mark();
    if (!mark.length) return;
    delivery.ask();
    this.pump(peer.id);
    while (!delivery.arrived(mark)) {
      if (record.closedReason !== null) throw this.#over(peer, record);
      await record.bell.wait(signal);
    }
  }

  async #confirmAll() {
    const signal = this.#hurry.signal;
    const late = () => new MeshTimeout("not all has arrived");
    const confirm = (/** @type {AbortSignal | null} */ scope) =>
      Promise.allSettled([...this.peers.values()].map((peer) => this.#confirm(peer, scope)));
    if (signal.aborted) return;
    for (const result of await scoped({ timeout: this.config.closeTimeout / 2, signal, late }, confirm)) {
      if (result.status === "rejected" && !signal.aborted && !(result.reason instanceof MeshError)) report(result.reason);
    }
  }

  /**
   * Send a ping on the path that messages take; true when it is answered, false when that path is
   * gone.
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {AbortSignal | null} signal
   */
  async #isAnswered(peer, record, signal) {
    const nonce = ++record.pingsSent;
    const delivery = this.node.delivery(peer.id);
    const path = delivery.out;
    this.do(this.node.ping(peer.id, nonce));
    while (record.pingsAnswered < nonce) {
      if (record.closedReason !== null) throw this.#gone(peer);
      if (path === null || delivery.out !== path) return false;
      await record.bell.wait(signal);
    }
    return true;
  }

  /**
   * A round trip on the path that messages take; whatever goes wrong is in the result.
   * @param {Peer} peer
   * @param {number} timeout
   * @returns {Promise<PathTest>}
   */
  async testPath(peer, timeout) {
    const record = this.#record(peer.id, peer.incarnation);
    const began = this.now();
    /** @type {Path | null} */
    let path = null;
    /** @type {string | null} */
    let error = null;
    if (record === null || peer.state !== "connected") {
      error = `the peer is ${peer.state}`;
    } else {
      path = peer.path;
      const late = () => new MeshTimeout(`no answer within ${timeout} s`);
      try {
        const isAnswered = await scoped({ timeout, late }, (signal) => this.#isAnswered(peer, record, signal));
        if (!isAnswered) error = "the path changed meanwhile";
      } catch (exc) {
        if (!(exc instanceof MeshError)) throw exc;
        error = exc.message;
      }
    }
    const rtt = error === null ? this.now() - began : null;
    return { kind: "PathTest", peerId: peer.id, path, rtt, error };
  }

  /**
   * Open a plain data channel to a connected peer.
   * @param {Peer} peer
   * @param {string} label
   * @param {ChannelOptions} options
   */
  openChannel(peer, label, options) {
    const record = this.#present(peer);
    const connection = this.#lanes.get(peer.id)?.connection ?? null;
    if (connection === null) {
      throw new ChannelClosed(`the connection to ${repr(peer.id)} has just ended`, { reason: "closed" });
    }
    return this.#channel(peer, record, connection.openChannel(label, options));
  }

  /**
   * The other side opened a plain data channel.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {RawChannel} raw
   */
  channelOpened(peerId, incarnation, raw) {
    const record = this.#record(peerId, incarnation);
    if (record === null || !this.#isLive) {
      raw.close();
    } else if (record.channels.size >= MAX_PLAIN_CHANNELS) {
      raw.close();
      const text = `${repr(peerId)} has ${MAX_PLAIN_CHANNELS} channels open, the limit; one more was closed`;
      this.#complain(peerId, record, new ProtocolError(text, { code: "too_many_channels", field: "label" }));
    } else {
      const channel = this.#channel(/** @type {Peer} */ (this.peers.get(peerId)), record, raw);
      this.#told({ kind: "ChannelOpened", peerId, channel });
    }
  }

  /**
   * Nothing ends that could keep more of it from coming: it is told now and then.
   * @param {string} peerId
   * @param {PeerRecord} record
   * @param {ProtocolError} error
   */
  #complain(peerId, record, error) {
    if (this.now() - record.complained < SHELL_COMPLAINS_EVERY) return;
    record.complained = this.now();
    this.#told({ kind: "BadInput", peerId, error });
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {RawChannel} raw
   */
  #channel(peer, record, raw) {
    const channel = new Channel(raw, peer, {
      budget: record.budget,
      sendBuffer: this.config.sendBuffer,
      closed: (each) => record.channels.delete(each),
    });
    record.channels.add(channel);
    return channel;
  }
}

/**
 * Whether the relay says that the seat is somebody else's: of another page or process, or of another
 * account than the one that our join token is for.
 * @param {unknown} error
 */
function isSeatRefused(error) {
  return error instanceof PeerIdTaken || (error instanceof Forbidden && error.field === "$.token");
}

/**
 * An event as the diagnostics show it: nothing that people said, and nothing that JSON can't have.
 * @param {any} event
 * @returns {any}
 */
function briefly(event) {
  const { error, channel, messages, metadata, text, sha256, ...rest } = event;
  if (event.kind === "FileOffered" || event.kind === "FileWithdrawn") {
    const { name, reason, ...file } = rest;
    return file;
  }
  return {
    ...rest,
    ...(error instanceof Error && { error: briefError(error) }),
    ...(channel instanceof Channel && { channel: channel.label }),
    ...(Array.isArray(messages) && { messages: messages.length }),
  };
}

/** @param {Error} error */
function briefError(error) {
  const { code = null, field = null, reason = null } = /** @type {any} */ (error);
  return { name: error.name, message: error.message, code, field, reason };
}
