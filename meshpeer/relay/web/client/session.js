// One seat at the relay, as its client sees it: connect, join, resume, count. No I/O, no clock.
//
// A dropped socket costs nothing as long as the seat lives: both ends count what they exchange, and
// what the other end has not got is sent again. SESSION_TABLE is the whole machine: which input is
// taken in which state, and which states may follow.
//
// Data frames are not kept: they go out while there is a seat, and what of them is on its way to
// each member is counted, by what the relay says has left it.

import {
  FORWARD_SLACK,
  IdentityReplaced,
  InvalidData,
  MARK,
  MAX_REPORTS,
  MeshError,
  MessageTooLarge,
  ProtocolError,
  Removed,
  SignalingBacklog,
  SignalingUnavailable,
  UnexpectedInput,
  VERSION,
  decodeClient,
  decodeForward,
  decodeRelay,
  encode,
  encodeForward,
  encodeValue,
  refusal,
  repr,
  utf8Length,
} from "./codec.js";
import { Backoff, Deadlines } from "./timing.js";

/** @import { Forwarded, ForwardRoom, FrameIn, Goodbye, Join, LinkReport, Metadata, OnConflict, Refused, RelayMessage, Report, SignalOut, Update, Welcome } from "./codec.js" */

/** Seconds that a connection may take to be made, and then the welcome to come. */
export const ANSWER_TIMEOUT = 5;
/** Counted messages after which an acknowledgement is sent at once. */
export const SESSION_ACK_EVERY = 16;
/** Seconds that a counted message stays unacknowledged at most. */
export const SESSION_ACK_AFTER = 5;
/**
 * Bytes that a message to the relay may have: any session description fits, and the relay takes it.
 *
 * A message that the relay shuts the socket for would be sent again after each resume, for ever.
 */
export const MAX_SIGNAL = 192 * 1024;
/** Bytes that a report may have; what does not fit into one goes into several. */
export const MAX_REPORT = 64 * 1024;
/**
 * Seconds that a relay may take to start again, after it said that it would: until then it is tried
 * again and again soon.
 */
export const RESTART_PATIENCE = 60;

/**
 * What can be done about an id that is in use, by what was asked for.
 * @type {Readonly<Record<OnConflict, string>>}
 */
const ADVICE = {
  reject: 'choose another id, or join with onConflict: "rename"',
  takeover: "to take it over, join with its resume token or a join token of its subject",
  rename: "choose a shorter one",
};

// A waiting time that comes from the relay is held to these: nothing it says makes a client hammer.
const SHORTEST_WAIT = 0.1;
const TAKEN_WAIT = 1;
// Between two tries of a relay that is being restarted; half of it to one and a half. Of the second
// in which a client is to be back, that leaves 0.4 s for the handshakes (TCP, TLS, WebSocket, join).
const RESTART_WAIT = 0.4;

/**
 * Where the session stands.
 * - joining: connected, the join was sent, the welcome is awaited
 * - seated: has a deadline of the wire's own, the keepalive, whose failure is `Session.dropped`
 * - waiting: for the time of the next try
 * @typedef {"new" | "connecting" | "joining" | "seated" | "waiting" | "closed"} SessionState
 */

/**
 * What can happen to a session: calls of its methods, and messages by their type. "received" is any
 * message, before it is looked at; one that is malformed or out of place ends there.
 * @typedef {"open" | "connected" | "connection_failed" | "dropped" | "send" | "update" | "forward"
 *   | "report" | "hurry" | "close" | "tick" | "received"
 *   | "message:welcome" | "message:joined" | "message:left" | "message:updated" | "message:signal"
 *   | "message:refused" | "message:ice_servers" | "message:notice" | "message:restart_ice"
 *   | "message:goodbye" | "message:pong" | "message:ack" | "message:forwarded" | "message:frame"} SessionInput
 */

/**
 * In `state`, `input` is taken, and one of `next` follows.
 * @typedef {[state: SessionState, input: SessionInput, next: SessionState[]]} SessionRow
 */

/**
 * What each state takes.
 *
 * A call that is not listed throws `UnexpectedInput`; a message that is not listed is the relay's
 * error and treated like a malformed one. A state that is listed as its own successor may stay.
 * @type {readonly SessionRow[]}
 */
export const SESSION_TABLE = [
  // <generated: session-table>
  ["new", "open", ["connecting"]],
  ["new", "close", ["closed"]],
  ["connecting", "connected", ["joining"]],
  ["connecting", "connection_failed", ["waiting"]],
  ["connecting", "send", ["connecting"]],
  ["connecting", "update", ["connecting"]],
  ["connecting", "forward", ["connecting"]],
  ["connecting", "report", ["connecting"]],
  ["connecting", "hurry", ["connecting"]],
  ["connecting", "tick", ["connecting", "waiting"]],
  ["connecting", "close", ["closed"]],
  ["joining", "dropped", ["waiting"]],
  ["joining", "send", ["joining"]],
  ["joining", "update", ["joining"]],
  ["joining", "forward", ["joining"]],
  ["joining", "report", ["joining"]],
  ["joining", "hurry", ["joining"]],
  ["joining", "tick", ["joining", "waiting"]],
  ["joining", "close", ["closed"]],
  ["joining", "received", ["waiting"]],
  ["joining", "message:welcome", ["seated", "closed"]],
  ["joining", "message:refused", ["waiting", "closed"]],
  ["joining", "message:goodbye", ["waiting", "closed"]],
  ["seated", "dropped", ["waiting"]],
  ["seated", "send", ["seated"]],
  ["seated", "update", ["seated"]],
  ["seated", "forward", ["seated"]],
  ["seated", "report", ["seated"]],
  ["seated", "hurry", ["seated"]],
  ["seated", "tick", ["seated"]],
  ["seated", "close", ["closed"]],
  ["seated", "received", ["waiting"]],
  ["seated", "message:joined", ["seated"]],
  ["seated", "message:left", ["seated"]],
  ["seated", "message:updated", ["seated"]],
  ["seated", "message:signal", ["seated"]],
  ["seated", "message:refused", ["seated"]],
  ["seated", "message:ice_servers", ["seated"]],
  ["seated", "message:notice", ["seated"]],
  ["seated", "message:restart_ice", ["seated"]],
  ["seated", "message:goodbye", ["waiting", "closed"]],
  ["seated", "message:pong", ["seated"]],
  ["seated", "message:ack", ["seated"]],
  ["seated", "message:forwarded", ["seated"]],
  ["seated", "message:frame", ["seated"]],
  ["waiting", "send", ["waiting"]],
  ["waiting", "update", ["waiting"]],
  ["waiting", "forward", ["waiting"]],
  ["waiting", "report", ["waiting"]],
  ["waiting", "hurry", ["connecting"]],
  ["waiting", "tick", ["connecting", "waiting"]],
  ["waiting", "close", ["closed"]],
  // </generated>
];

/** @type {ReadonlyMap<string, SessionState[]>} */
const SESSION_INDEX = new Map(SESSION_TABLE.map(([state, input, next]) => [`${state}, ${input}`, next]));

/** @type {Readonly<Record<RelayMessage["kind"], SessionInput>>} */
const SESSION_INPUTS = {
  Welcome: "message:welcome",
  MemberJoined: "message:joined",
  MemberLeft: "message:left",
  MemberUpdated: "message:updated",
  SignalIn: "message:signal",
  Refused: "message:refused",
  IceServers: "message:ice_servers",
  Forwarded: "message:forwarded",
  Notice: "message:notice",
  RestartIce: "message:restart_ice",
  Goodbye: "message:goodbye",
  Pong: "message:pong",
  Ack: "message:ack",
};

/**
 * What a session wants done.
 * - Connect: make a connection; answer with `Session.connected` or `Session.connectionFailed`
 * - Transmit: send this text on the connection; a join has secrets in it
 * - TransmitFrame: send these bytes on the connection; each `Transmit` that comes before they are
 *   sent goes first
 * - Disconnect: close the connection, or give the attempt up; nothing of it may be fed in from now
 *   on. What was to be transmitted before goes out first, as far as that takes no more than a second
 * - Tell: tell the user of the transport; the first thing told is the first `Welcome`
 * - Lost: tell the user that a seat's connection is gone, and in how many seconds it is tried next;
 *   told once, until the next `Welcome`
 * - Fail: the session is over for good
 * @typedef {{kind: "Connect"}
 *   | {kind: "Transmit", data: string}
 *   | {kind: "TransmitFrame", data: Uint8Array}
 *   | {kind: "Disconnect"}
 *   | {kind: "Tell", event: SessionEvent}
 *   | {kind: "Lost", reason: string, retryIn: number}
 *   | {kind: "Fail", error: MeshError}} SessionOutput
 */

/** @typedef {Exclude<RelayMessage, {kind: "Ack" | "Forwarded" | "Goodbye" | "Pong"}> | FrameIn | ForwardRoom} SessionEvent */

/**
 * A counted message that the relay has not acknowledged.
 * @typedef {{data: string, isUpdate: boolean}} PendingMessage
 */

/**
 * What a session takes of the settings (MeshConfig). Times are seconds.
 * @typedef {object} SessionConfig
 * @property {number} signalingRetryFirst
 * @property {number} signalingRetryMax
 * @property {number} maxPendingSignals
 */

/**
 * The client's end of one seat. `open` comes first; every method returns what is to be done, in
 * order.
 */
export class Session {
  #config;
  #random;
  #service;
  /** @type {SessionState} */
  #state = "new";
  /** @type {SessionInput} */
  #input = "open";
  /** @type {Deadlines<"connecting" | "joining" | "waiting" | "ack">} */
  #deadlines = new Deadlines();
  #backoff;
  #wait = 0;
  #seatedAt = 0;
  /** Until when a relay that said that it restarts is tried again soon. */
  #restartsUntil = -Infinity;
  /** @type {MeshError | null} */
  #lastFailure = null;
  /** Set by `open`, which every other input needs. @type {Join | null} */
  #ownJoin = null;
  #welcomed = false;
  #lossTold = false;
  // relay -> client
  #received = 0;
  #receivedAcked = 0;
  // client -> relay: pending[0] is number acked + 1; transmitted is the highest number that was on a
  // wire; the join that is under way has the updates up to number inJoin in it.
  /** @type {PendingMessage[]} */
  #pending = [];
  #acked = 0;
  #transmitted = 0;
  #inJoin = 0;
  // Data: what may be on its way to one member, and the bytes that are, by peer id.
  #window = 0;
  #wantsReports = false;
  /** @type {Map<string, number>} */
  #underWay = new Map();

  /**
   * @param {SessionConfig} config
   * @param {object} options
   * @param {() => number} options.random gives numbers in [0, 1), for the jitter of waiting times
   * @param {string} [options.service] what error texts call the other end
   */
  constructor(config, { random, service = "the relay" }) {
    this.#config = config;
    this.#random = random;
    this.#service = service;
    this.#backoff = new Backoff(config.signalingRetryFirst, config.signalingRetryMax);
  }

  /** Where the session stands. */
  get state() {
    return this.#state;
  }

  /** Why the latest try failed; null after a success, or when none was made. */
  get lastFailure() {
    return this.#lastFailure;
  }

  /** How many counted messages the relay has not acknowledged. */
  get pending() {
    return this.#pending.length;
  }

  /** When to call `tick`, or null. */
  nextDeadline() {
    return this.#deadlines.next();
  }

  // --- what the user does ---

  /**
   * Begin to take a seat. Throws `InvalidData` when `join` does not fit the schema.
   * @param {Join} join its `session`, `received` and `attempt` are the session's own
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  open(join, now) {
    this.#take("open");
    const first = { ...join, session: null, received: 0, attempt: 0 };
    this.#checked(first);
    this.#ownJoin = first;
    this.#setState("connecting", now);
    return [{ kind: "Connect" }];
  }

  /**
   * Send a signal, or keep it until there is a seat.
   *
   * Throws, and changes nothing: `SignalingBacklog` when `maxPendingSignals` are unacknowledged,
   * `InvalidData` when it does not fit the schema, `MessageTooLarge` when it has more than
   * `MAX_SIGNAL` bytes.
   * @param {SignalOut} signal
   */
  send(signal) {
    this.#take("send");
    return this.#enqueue({ data: this.#checked(signal), isUpdate: false });
  }

  /**
   * Change the name or the metadata; null leaves it as it is. Throws like `send`.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.#take("update");
    if (name === null && metadata === null) return [];
    const data = this.#checked({ kind: "Update", name, metadata });
    const outputs = this.#enqueue({ data, isUpdate: true });
    // A later join carries the newest values.
    const join = this.#join;
    this.#ownJoin = { ...join, name: name ?? join.name, metadata: metadata ?? join.metadata };
    return outputs;
  }

  /**
   * Bytes of data that may go to this member now; 0 without a seat.
   *
   * When it was below half of the window, a `ForwardRoom` is told once it is not any more. After
   * each `Welcome` it is the whole window.
   * @param {string} to
   */
  forwardRoom(to) {
    if (this.#state !== "seated") return 0;
    return Math.max(0, this.#window - (this.#underWay.get(to) ?? 0));
  }

  /**
   * Send a data frame; dropped without a seat, or `FORWARD_SLACK` beyond the window.
   *
   * Throws `InvalidData` when it is empty, `MessageTooLarge` for more than `MAX_FORWARD` bytes.
   * @param {string} to
   * @param {string} toIncarnation
   * @param {Uint8Array} frame
   * @returns {SessionOutput[]}
   */
  forward(to, toIncarnation, frame) {
    this.#take("forward");
    const data = encodeForward(to, toIncarnation, frame);
    const underWay = (this.#underWay.get(to) ?? 0) + data.length;
    if (this.#state !== "seated" || !this.#window || underWay > this.#window + FORWARD_SLACK) return [];
    this.#underWay.set(to, underWay);
    return [{ kind: "TransmitFrame", data }];
  }

  /**
   * Tell how these links stand; dropped without a seat, or where no reports are wanted.
   *
   * Throws `InvalidData` when one does not fit the schema.
   * @param {readonly LinkReport[]} links
   * @returns {SessionOutput[]}
   */
  report(links) {
    this.#take("report");
    if (this.#state !== "seated" || !this.#wantsReports || !links.length) return [];
    /** @type {Report} */
    const report = { kind: "Report", links: [...links] };
    if (links.length > MAX_REPORTS || (links.length > 1 && utf8Length(encode(report)) > MAX_REPORT)) {
      const half = links.length >> 1;
      return [...this.report(links.slice(0, half)), ...this.report(links.slice(half))];
    }
    return [{ kind: "Transmit", data: this.#checked(report) }];
  }

  /**
   * The network has changed: what waits is tried now, and what is being tried is begun anew.
   *
   * A connection that is there is left alone; whether it still works, its owner finds out.
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  hurry(now) {
    this.#take("hurry");
    if (this.#state !== "waiting" && this.#state !== "connecting") return [];
    const isTrying = this.#state === "connecting";
    this.#setState("connecting", now);
    return isTrying ? [{ kind: "Disconnect" }, { kind: "Connect" }] : [{ kind: "Connect" }];
  }

  /**
   * Give the seat up, as far as there is a connection to say so on.
   * @param {number} now
   */
  close(now) {
    this.#take("close");
    /** @type {SessionOutput[]} */
    const outputs = [];
    const isConnected = this.#state === "joining" || this.#state === "seated";
    if (isConnected) outputs.push({ kind: "Transmit", data: encode({ kind: "Leave" }) });
    if (isConnected || this.#state === "connecting") outputs.push({ kind: "Disconnect" });
    this.#setState("closed", now);
    return outputs;
  }

  // --- what the connection does ---

  /**
   * The connection that `Connect` asked for is there.
   *
   * Throws `InvalidData`, and changes nothing, when the token can't be one.
   * @param {number} now
   * @param {string | null} [joinToken] for this join alone
   * @returns {SessionOutput[]}
   */
  connected(now, joinToken = null) {
    this.#take("connected");
    const join = { ...this.#join, received: this.#received, attempt: this.#join.attempt + 1 };
    const data = this.#checked(joinToken === null ? join : { ...join, joinToken });
    this.#ownJoin = join;
    this.#restartsUntil = -Infinity;
    this.#receivedAcked = this.#received;
    this.#inJoin = this.#acked + this.#pending.length;
    this.#setState("joining", now);
    return [{ kind: "Transmit", data }];
  }

  /**
   * It can't be made.
   * @param {string} reason a text that a person can act on
   * @param {number} now
   */
  connectionFailed(reason, now) {
    this.#take("connection_failed");
    return this.#lose(reason, now, { wait: this.#restartWait(now) });
  }

  /**
   * The connection is gone.
   * @param {string} reason
   * @param {number} now
   */
  dropped(reason, now) {
    this.#take("dropped");
    return this.#lose(reason, now);
  }

  /**
   * The relay said something.
   *
   * What is malformed or out of place changes nothing but that this connection is given up and
   * another one made, with a growing wait.
   * @param {string | Uint8Array} data
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  received(data, now) {
    this.#take("received");
    try {
      if (typeof data !== "string" && data[0] === MARK) return this.#frame(data);
      return this.#heard(decodeRelay(data), now);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#input = "received";
      return [{ kind: "Disconnect" }, ...this.#lose(error.message, now)];
    }
  }

  /**
   * Time has passed; call it at `nextDeadline`, or at any other time.
   * @param {number} now
   */
  tick(now) {
    this.#take("tick");
    /** @type {SessionOutput[]} */
    const outputs = [];
    for (const [name] of this.#deadlines.due(now)) {
      if (name === "waiting") {
        this.#setState("connecting", now);
        outputs.push({ kind: "Connect" });
      } else if (name === "ack") {
        outputs.push(this.#acknowledge());
      } else {
        const what = name === "connecting" ? "accept a connection" : "answer the join";
        const reason = `${this.#service} did not ${what} within ${ANSWER_TIMEOUT} seconds`;
        const lost = this.#lose(reason, now, { wait: this.#restartWait(now) });
        outputs.push({ kind: "Disconnect" }, ...lost);
      }
    }
    return outputs;
  }

  // --- the messages ---

  /** @param {SessionInput} kind */
  #place(kind) {
    if (!SESSION_INDEX.has(`${this.#state}, ${kind}`)) {
      const text = `${this.#service} sent ${repr(kind.slice("message:".length))} to a client that is ${this.#state}`;
      throw new ProtocolError(text, { code: "out_of_place" });
    }
    this.#input = kind;
  }

  /**
   * @param {Uint8Array} data
   * @returns {SessionOutput[]}
   */
  #frame(data) {
    this.#place("message:frame");
    return [{ kind: "Tell", event: decodeForward(data) }];
  }

  /**
   * @param {RelayMessage} message
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #heard(message, now) {
    this.#place(SESSION_INPUTS[message.kind]);
    switch (message.kind) {
      case "Welcome":
        return this.#welcome(message, now);
      case "IceServers":
        return [{ kind: "Tell", event: message }];
      case "Ack":
        this.#trim(message.received);
        return [];
      case "Forwarded":
        return this.#forwarded(message);
      case "Pong":
        return [];
      case "Goodbye":
        return this.#goodbye(message, now);
      case "Refused":
        return this.#state === "joining" ? this.#refused(message, now) : this.#counted(message, now);
      default:
        return this.#counted(message, now);
    }
  }

  /**
   * @param {Welcome} welcome
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #welcome(welcome, now) {
    const join = this.#join;
    if (welcome.version !== VERSION) {
      const text = `${this.#service} speaks version ${welcome.version} of the protocol, this client ${VERSION}`;
      return this.#fail(refusal("unsupported_version", text, { field: "$.version" }), now);
    }
    for (const [name, value, isOurs] of /** @type {const} */ ([
      ["room", welcome.room, welcome.room === join.room],
      ["incarnation", welcome.incarnation, welcome.incarnation === join.incarnation],
      ["peer_id", welcome.peerId, welcome.peerId === join.peerId || join.onConflict === "rename"],
      ["session", welcome.session, !welcome.resumed || welcome.session === join.session],
    ])) {
      if (isOurs) continue;
      const text = `${this.#service} welcomed somebody else: ${name} is ${value === null ? value : repr(value)}`;
      throw new ProtocolError(text, { code: "out_of_place", field: `$.${name}` });
    }
    // Also when not resumed: how far the count before this one got, or 0 when that is unknown.
    if (welcome.resumed || welcome.received) this.#trim(welcome.received);
    if (!welcome.resumed) {
      // The addressees of signals may well be there still, so those go on, even if one or the other
      // comes twice after a relay that lost its memory; an update is in the join.
      const inJoin = this.#inJoin - this.#acked;
      this.#pending = this.#pending.filter(({ isUpdate }, place) => place >= inJoin || !isUpdate);
      this.#acked = 0;
      this.#received = this.#receivedAcked = 0;
    }
    this.#transmitted = this.#acked + this.#pending.length;
    this.#window = welcome.forwardWindow;
    this.#wantsReports = welcome.reportInterval > 0;
    this.#underWay.clear();
    const { peerId, token, session } = welcome;
    // Who has an id keeps it or ends: nobody's links survive another one.
    this.#ownJoin = { ...join, peerId, onConflict: "reject", token, session };
    this.#welcomed = true;
    this.#lossTold = false;
    this.#lastFailure = null;
    this.#seatedAt = now;
    this.#setState("seated", now);
    const pending = this.#pending.map(({ data }) => ({ kind: /** @type {const} */ ("Transmit"), data }));
    return [{ kind: "Tell", event: welcome }, ...pending];
  }

  /**
   * @param {Extract<SessionEvent, RelayMessage>} message
   * @param {number} now
   */
  #counted(message, now) {
    this.#received++;
    /** @type {SessionOutput[]} */
    const outputs = [{ kind: "Tell", event: message }];
    if (this.#received - this.#receivedAcked >= SESSION_ACK_EVERY) outputs.push(this.#acknowledge());
    else if (this.#deadlines.get("ack") === null) this.#deadlines.set("ack", now + SESSION_ACK_AFTER);
    return outputs;
  }

  /**
   * @param {Forwarded} message
   * @returns {SessionOutput[]}
   */
  #forwarded({ to, size }) {
    const before = this.#underWay.get(to) ?? 0;
    const after = before - size;
    if (after < 0) {
      const text = `${this.#service} has forwarded ${size} bytes to ${repr(to)}, of ${before} on their way`;
      throw new ProtocolError(text, { code: "bad_forwarded", field: "$.size" });
    }
    if (after) this.#underWay.set(to, after);
    else this.#underWay.delete(to);
    // Room is what is left of the window: below half of it, now not any more.
    const half = Math.floor(this.#window / 2);
    return after <= half && half < before ? [{ kind: "Tell", event: { kind: "ForwardRoom", peerId: to } }] : [];
  }

  /**
   * The join was refused.
   * @param {Refused} refused
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #refused({ code, text, field, retryAfter }, now) {
    if (code === "peer_id_taken") {
      // Who had it before joins with "reject" whatever was asked for, and can do nothing.
      const advice = ADVICE[this.#join.onConflict];
      text += this.#welcomed ? "; this process lost it while it was away" : `; ${advice}`;
    }
    const error = refusal(code, text, { field, retryAfter });
    if (code === "peer_id_taken" && retryAfter !== null) {
      // The holder's socket is down: it comes back, or its seat runs out.
      const wait = Math.min(Math.max(retryAfter, SHORTEST_WAIT), TAKEN_WAIT);
      return [{ kind: "Disconnect" }, ...this.#lose(error, now, { wait })];
    }
    if (code === "rate_limited" || code === "unavailable") {
      return [{ kind: "Disconnect" }, ...this.#lose(error, now, { after: retryAfter ?? 0 })];
    }
    return this.#fail(error, now);
  }

  /**
   * @param {Goodbye} goodbye
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #goodbye({ reason, retryAfter }, now) {
    const peerId = repr(this.#join.peerId);
    if (reason === "replaced") {
      return this.#fail(new IdentityReplaced(`a newer process has the peer id ${peerId}`, { reason }), now);
    }
    if (reason === "removed") {
      const text = `the operator of ${this.#service} removed ${peerId} from the room`;
      return this.#fail(new Removed(text, { reason }), now);
    }
    let wait = null;
    if (retryAfter !== null) {
      const whole = Math.min(Math.max(retryAfter, SHORTEST_WAIT), this.#config.signalingRetryMax);
      wait = whole * (0.5 + this.#random());
      if (reason === "shutdown") this.#restartsUntil = now + RESTART_PATIENCE;
    }
    return [{ kind: "Disconnect" }, ...this.#lose(`${this.#service} said goodbye (${reason})`, now, { wait })];
  }

  // --- the parts ---

  get #join() {
    return /** @type {Join} */ (this.#ownJoin);
  }

  /** @param {SessionInput} name */
  #take(name) {
    if (!SESSION_INDEX.has(`${this.#state}, ${name}`)) {
      throw new UnexpectedInput(`the session is ${this.#state}: it takes no ${repr(name)}`);
    }
    this.#input = name;
  }

  /**
   * @param {SessionState} state
   * @param {number} now
   */
  #setState(state, now) {
    if (!SESSION_INDEX.get(`${this.#state}, ${this.#input}`)?.includes(state)) {
      throw new Error(`${this.#state} --${this.#input}--> ${state} is not in the table`);
    }
    this.#state = state;
    this.#deadlines.clearAll();
    if (state === "connecting" || state === "joining") this.#deadlines.set(state, now + ANSWER_TIMEOUT);
  }

  /**
   * The wait before the next try of a relay that is being restarted; null when it is not.
   * @param {number} now
   */
  #restartWait(now) {
    if (now >= this.#restartsUntil) return null;
    return Math.min(RESTART_WAIT * (0.5 + this.#random()), this.#config.signalingRetryMax);
  }

  /**
   * There is no connection now.
   * @param {string | MeshError} reason
   * @param {number} now
   * @param {object} [options]
   * @param {number | null} [options.wait] before the next try, by default the backoff's and `after`
   * @param {number} [options.after] comes from the relay
   * @returns {SessionOutput[]}
   */
  #lose(reason, now, { wait = null, after = 0 } = {}) {
    // A seat that did not last as long as it was waited for is no success: the wait grows.
    if (this.#state === "seated" && now - this.#seatedAt >= this.#wait) this.#backoff.reset();
    this.#wait = wait ?? this.#backoff.next(this.#random()) + Math.min(after, this.#config.signalingRetryMax);
    const error = typeof reason === "string" ? new SignalingUnavailable(reason) : reason;
    this.#lastFailure = error;
    this.#setState("waiting", now);
    this.#deadlines.set("waiting", now + this.#wait);
    if (!this.#welcomed || this.#lossTold) return [];
    this.#lossTold = true;
    return [{ kind: "Lost", reason: error.message, retryIn: this.#wait }];
  }

  /**
   * @param {MeshError} error
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #fail(error, now) {
    this.#lastFailure = error;
    this.#setState("closed", now);
    return [{ kind: "Disconnect" }, { kind: "Fail", error }];
  }

  /**
   * The text of `message`, known to fit what the relay checks it with.
   *
   * What the relay can't decode it can't count, and the counts of both ends would differ.
   * @param {Join | SignalOut | Update | Report} message
   */
  #checked(message) {
    // What JSON would leave out without a word.
    if ("metadata" in message) encodeValue(message.metadata);
    let data;
    try {
      data = encode(message);
      decodeClient(data);
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof ProtocolError)) throw error;
      throw new InvalidData(`can't be sent to ${this.#service}: ${error.message}`);
    }
    const size = utf8Length(data);
    if (size > MAX_SIGNAL) {
      throw new MessageTooLarge(`a message to ${this.#service} has ${size} bytes, the limit is ${MAX_SIGNAL}`);
    }
    return data;
  }

  /**
   * @param {PendingMessage} pending
   * @returns {SessionOutput[]}
   */
  #enqueue(pending) {
    const limit = this.#config.maxPendingSignals;
    if (this.#pending.length >= limit) {
      throw new SignalingBacklog(
        `${limit} signals wait for ${this.#service} already (config.maxPendingSignals); ` +
          (this.#lastFailure?.message ?? "it has not acknowledged them yet"),
      );
    }
    this.#pending.push(pending);
    if (this.#state !== "seated") return [];
    this.#transmitted++;
    return [{ kind: "Transmit", data: pending.data }];
  }

  /**
   * The relay has the first so many counted messages.
   * @param {number} received
   */
  #trim(received) {
    if (received < this.#acked || received > this.#transmitted) {
      throw new ProtocolError(
        `${this.#service} acknowledged ${received} messages, which is not between ` +
          `${this.#acked} and ${this.#transmitted}`,
        { code: "bad_ack", field: "$.received" },
      );
    }
    this.#pending.splice(0, received - this.#acked);
    this.#acked = received;
  }

  /** @returns {SessionOutput} */
  #acknowledge() {
    this.#deadlines.clear("ack");
    this.#receivedAcked = this.#received;
    return { kind: "Transmit", data: encode({ kind: "Ack", received: this.#received }) };
  }
}
