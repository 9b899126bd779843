// Signalling over a WebSocket (RFC 6455) to the relay: the wire around a Session, one timer, and words
// for what went wrong. The same as meshpeer's signaling/client.py and signaling/websocket.py.
//
// A browser can't send WebSocket pings, so the protocol's own do their work; and it can't say when a
// socket has room again, so data frames are given to it a few at a time. Nor does it say why a
// connection can't be made.

import {
  ClosedError,
  ConfigError,
  MAX_JOIN_TOKEN,
  MeshClosed,
  ProtocolError,
  SignalingUnavailable,
  decodeRelay,
  encode,
  repr,
} from "./codec.js";
import { Session } from "./session.js";

/** @import { Join, LinkReport, MeshError, Metadata, SignalOut, Welcome } from "./codec.js" */
/** @import { SessionConfig, SessionEvent, SessionOutput } from "./session.js" */

/** Seconds without a word from the relay after which it is pinged; it has as long to answer. */
export const KEEPALIVE = 10;
/** Seconds that a connection in doubt has to show that it works. */
export const CHECK_TIMEOUT = 1;
/** Seconds that the last words on a connection may take. */
export const CLOSE_TIMEOUT = 1;
/** Bytes that a message from the relay may have: a welcome lists a room of thousands. */
export const MAX_SIGNALING_MESSAGE = 16 * 1024 * 1024;
/** Bytes that a socket may have buffered for data frames to be given to it: signals wait behind them. */
const SOCKET_BUFFER = 64 * 1024;
/** Seconds between two looks whether it has less; what the relay says is a reason to look as well. */
const SOCKET_LOOK = 0.005;
/**
 * Seconds by which a timer is late in a tab that is throttled, was frozen, or has much to do: what the
 * relay said meanwhile may be waiting to be heard then.
 */
const TIMER_LATE = 0.5;
/** Seconds that a timer lasts at most here; setTimeout takes one beyond 2**31 ms for none. */
const LONGEST_TIMER = 86400;

const RELAY_EXAMPLE = "a relay's URL looks like ws://localhost:3001 or wss://relay.example.org";
const BAD_JOIN_TOKEN = `is no join token: it must be a string of 1 to ${MAX_JOIN_TOKEN} printable ASCII characters`;
const JOIN_TOKEN = new RegExp(`^[!-~]{1,${MAX_JOIN_TOKEN}}$`);

/**
 * The service can't be reached; the transport tries again by itself, in `retryIn` seconds.
 * @typedef {{kind: "SignalingLost", reason: string, retryIn: number | null}} SignalingLost
 */
/** @typedef {SessionEvent | SignalingLost} SignalingEvent */
/**
 * A join token, or what gives one for each connection, as one that expires needs.
 * @typedef {string | (() => string | Promise<string>)} JoinTokenSource
 */

/**
 * `url`, or what was meant to be one, without a user's password and without a query.
 * @param {string} url
 */
export function urlWithoutSecrets(url) {
  try {
    const { protocol, host, pathname } = new URL(url);
    if (host) return `${protocol}//${host}${pathname}`;
  } catch {
    // It does not parse, so where a password ends is not known.
  }
  // To the last @, wherever it is: a password that is not percent-encoded may hold a / or a ?.
  return url.replace(/^(.*?\/\/)?.*@/s, "$1").split(/[?#]/, 1)[0];
}

/**
 * The address of the relay's WebSocket, from that or from a page of the relay's.
 *
 * Throws `ConfigError`.
 * @param {string | URL} url
 */
export function relayAddress(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    throw new ConfigError(`${repr(urlWithoutSecrets(String(url)))} is not the URL of a relay; ${RELAY_EXAMPLE}`);
  }
  const shown = () => repr(urlWithoutSecrets(parsed.href));
  if (parsed.protocol === "http:" || parsed.protocol === "https:") {
    parsed.protocol = parsed.protocol === "http:" ? "ws:" : "wss:";
    parsed.pathname = parsed.pathname.replace(/\/chat(\/[^/]*)?$|\/meshpeer\.js$/, "/");
    parsed.search = parsed.hash = "";
  } else if (parsed.protocol !== "ws:" && parsed.protocol !== "wss:") {
    throw new ConfigError(`${shown()} is not the URL of a relay: its scheme is ${parsed.protocol}; ${RELAY_EXAMPLE}`);
  } else if (parsed.hash) {
    throw new ConfigError(`${shown()} has a fragment (#…), which the URL of a relay can't; ${RELAY_EXAMPLE}`);
  }
  return parsed;
}

/** A text of 43 random characters, for a token. */
function newSeatToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return btoa(String.fromCharCode(...bytes))
    .replace(/\+/g, "-")
    .replace(/\//g, "_")
    .replace(/=/g, "");
}

/**
 * Whether the relay says that it answers a ping. Short ones are looked at only.
 * @param {unknown} data
 */
function isPong(data) {
  if (typeof data !== "string" || data.length > 64 || !data.includes('"pong"')) return false;
  try {
    return decodeRelay(data).kind === "Pong";
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return false; // the session deals with it
  }
}

/** One connection, from the session's `Connect` to its `Disconnect` or its end. */
class RelayLine {
  /** @type {WebSocket | null} */
  socket = null;
  isOpen = false;
  /**
   * What goes out as the socket has room; the session's windows bound it.
   * @type {Uint8Array[]}
   */
  frames = [];
  pings = 0;
  pongs = 0;
  /** The ping whose answer shows that it works, where that is in doubt. */
  doubted = 0;
  heardAt = 0;
  /** When it is given up, unless something is heard before; null: nothing is overdue. */
  giveUpAt = /** @type {number | null} */ (null);
  /** How long it had, for the text. */
  patience = 0;
  /** `giveUpAt` has been put off once, because the timer was late. */
  isPutOff = false;
}

/**
 * Runs a `Session` over WebSockets. Times are seconds.
 *
 * `onEvent` is told what happens after the first `Welcome`, which `open` returns: events of the
 * session and `SignalingLost`, in order, never while another one is being told. `onEnd` is called
 * once, with the error, when the transport ends by itself after that.
 */
export class RelayTransport {
  #url;
  #shown;
  #service;
  #joinToken;
  #onEvent;
  #onEnd;
  #session;
  /** @type {RelayLine | null} */
  #line = null;
  /** @type {SessionOutput[]} */
  #outputs = [];
  #isDoing = false;
  /** @type {{resolve: (welcome: Welcome) => void, reject: (error: Error) => void} | null} */
  #opening = null;
  /** @type {Error | null} */
  #end = null;
  /** @type {Promise<void> | null} */
  #closing = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #timerAt = Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #looker;
  /** A tick of the session that was late has been put off to this time. */
  #lateTick = /** @type {number | null} */ (null);
  /** Sockets that are being closed. @type {Set<Promise<void>>} */
  #hangUps = new Set();

  /**
   * Throws `ConfigError` when `url` or `joinToken` can't be one.
   * @param {string | URL} url of the relay (`ws://` or `wss://`), or of a page of the relay's
   * @param {object} options
   * @param {SessionConfig} options.config
   * @param {JoinTokenSource | null} [options.joinToken] shows that we may join, where the relay asks
   *   for that. A function is asked before each connection, within the time that it may take; what it
   *   throws makes that attempt fail.
   * @param {(event: SignalingEvent) => void} options.onEvent
   * @param {(error: Error) => void} options.onEnd
   */
  constructor(url, { config, joinToken = null, onEvent, onEnd }) {
    const address = relayAddress(url);
    if (joinToken !== null && typeof joinToken !== "function" && !JOIN_TOKEN.test(joinToken)) {
      throw new ConfigError(`joinToken ${BAD_JOIN_TOKEN}`);
    }
    this.#url = address.href;
    const path = address.pathname === "/" ? "" : address.pathname;
    this.#shown = `${address.protocol}//${address.host}${path}`;
    this.#service = `the relay at ${this.#shown}`;
    this.#joinToken = joinToken;
    this.#onEvent = onEvent;
    this.#onEnd = onEnd;
    this.#session = new Session(config, { random: Math.random, service: this.#service });
  }

  /** The relay's address as it may be shown: without a password and without a query. */
  get url() {
    return this.#shown;
  }

  /** Where the session stands: new, connecting, joining, seated, waiting or closed. */
  get state() {
    return this.#session.state;
  }

  /**
   * Why the latest try to reach the relay failed; null after a success.
   * @returns {MeshError | null}
   */
  get lastFailure() {
    return this.#session.lastFailure;
  }

  /** Seconds to the next try to reach the relay; null while none is waited for. */
  retryIn() {
    const due = this.#session.state === "waiting" ? this.#session.nextDeadline() : null;
    return due === null ? null : Math.max(0, due - this.#now());
  }

  /**
   * Take a seat. Tries until it succeeds or `close` is called; the caller has the deadline.
   *
   * A join without a token gets one of its own, so that a seat whose welcome was lost on the way is
   * still ours. Throws `InvalidData` when `join` does not fit the schema, `RefusedError` when the
   * relay refuses for good, `ConfigError` when the browser won't connect there, `MeshClosed` when
   * `close` was called, and the reason of `signal` when that was aborted: the transport is closed then.
   * @param {Join} join
   * @param {AbortSignal | null} [signal]
   * @returns {Promise<Welcome>}
   */
  async open(join, signal = null) {
    this.#checkOpen();
    signal?.throwIfAborted();
    const outputs = this.#session.open(join.token === null ? { ...join, token: newSeatToken() } : join, this.#now());
    const onAbort = () => {
      this.#opening?.reject(signal?.reason);
      void this.close();
    };
    signal?.addEventListener("abort", onAbort);
    try {
      return await new Promise((resolve, reject) => {
        this.#opening = { resolve, reject };
        this.#do(outputs);
      });
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /**
   * Send a signal; kept and sent later while the relay is away.
   *
   * Throws `SignalingBacklog` when too many are kept, `MeshClosed` after the end.
   * @param {SignalOut} signal
   */
  send(signal) {
    this.#checkOpen();
    this.#do(this.#session.send(signal));
  }

  /**
   * Tell the room a new name or metadata; null leaves it as it is. Throws like `send`.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.#checkOpen();
    this.#do(this.#session.update(name, metadata));
  }

  /**
   * Bytes of frames that may go to a member now; 0 without a seat.
   * @param {string} to
   */
  forwardRoom(to) {
    return this.#end === null ? this.#session.forwardRoom(to) : 0;
  }

  /**
   * Send a data frame of up to 64 KiB; dropped without a seat, and 64 KiB beyond `forwardRoom`.
   * @param {string} to
   * @param {string} toIncarnation
   * @param {Uint8Array} data
   */
  forward(to, toIncarnation, data) {
    if (this.#isUnderWay()) this.#do(this.#session.forward(to, toIncarnation, data));
  }

  /**
   * Tell the relay how these links stand; dropped without a seat.
   * @param {readonly LinkReport[]} links
   */
  report(links) {
    if (this.#isUnderWay()) this.#do(this.#session.report(links));
  }

  /**
   * The network has changed, the page was away, or a peer fell silent and maybe the network with it.
   *
   * The connection has `CHECK_TIMEOUT` seconds to show that it works. When the network has changed,
   * what would be tried later is tried now.
   * @param {{networkChanged: boolean}} options
   */
  doubt({ networkChanged }) {
    if (!this.#isUnderWay()) return;
    if (this.#line?.isOpen) this.#doubt(this.#line, networkChanged);
    this.#do(networkChanged ? this.#session.hurry(this.#now()) : []);
  }

  /**
   * Give the seat up, as far as the relay can be reached within a second, and end: nothing is told
   * from now on. May be called at any time and more than once.
   * @returns {Promise<void>}
   */
  close() {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close() {
    if (this.#end === null) {
      this.#finish(new MeshClosed("the signalling transport is closed"), () => {});
      if (this.#line?.isOpen) this.#flush(this.#line, Infinity); // behind the goodbye nothing is read
      this.#do(this.#session.close(this.#now()));
    }
    await null; // who is being told something may have called: what is to be done is done after that
    await Promise.all(this.#hangUps); // within CLOSE_TIMEOUT
  }

  // --- the session's outputs ---

  #now() {
    return performance.now() / 1000;
  }

  #isUnderWay() {
    return this.#end === null && this.#session.state !== "new" && this.#session.state !== "closed";
  }

  #checkOpen() {
    if (this.#end instanceof ClosedError) throw this.#end;
    if (this.#end !== null) throw new MeshClosed(`the signalling transport has ended: ${this.#end.message}`);
  }

  /**
   * What is told may bring forth more outputs: those come behind the ones that are there.
   * @param {readonly SessionOutput[]} outputs
   */
  #do(outputs) {
    this.#outputs.push(...outputs);
    if (this.#isDoing) return;
    this.#isDoing = true;
    try {
      for (let output = this.#outputs.shift(); output; output = this.#outputs.shift()) this.#doOne(output);
    } catch (error) {
      this.#fault(error);
    } finally {
      this.#isDoing = false;
    }
    this.#arm();
  }

  /** @param {SessionOutput} output */
  #doOne(output) {
    const line = this.#line;
    switch (output.kind) {
      case "Tell":
        if (this.#opening !== null && output.event.kind === "Welcome") {
          this.#opening.resolve(output.event);
          this.#opening = null;
        } else {
          this.#tell(output.event);
        }
        break;
      case "Transmit":
        line?.socket?.send(output.data);
        break;
      case "TransmitFrame":
        if (line !== null) {
          line.frames.push(output.data);
          this.#flush(line);
        }
        break;
      case "Connect":
        this.#line = new RelayLine();
        void this.#dial(this.#line);
        break;
      case "Disconnect":
        this.#hangUp();
        break;
      case "Lost":
        this.#tell({ kind: "SignalingLost", reason: output.reason, retryIn: output.retryIn });
        break;
      case "Fail":
        this.#finish(output.error);
    }
  }

  /** @param {SignalingEvent} event */
  #tell(event) {
    if (this.#end === null) this.#onEvent(event);
  }

  /**
   * @param {Error} error
   * @param {(error: Error) => void} [onEnd]
   */
  #finish(error, onEnd = this.#onEnd) {
    if (this.#end !== null) return;
    this.#end = error;
    if (this.#opening === null) return onEnd(error);
    this.#opening.reject(error);
    this.#opening = null;
  }

  /**
   * A fault of the code here, or of who was told: nobody may wait for ever because of it.
   * @param {unknown} error
   */
  #fault(error) {
    this.#outputs.length = 0;
    this.#hangUp();
    this.#finish(error instanceof Error ? error : new Error(String(error)));
    this.#arm();
  }

  // --- the connection ---

  /**
   * Make the connection that `line` is for; its fate is told to the session.
   * @param {RelayLine} line
   */
  async #dial(line) {
    let token = null;
    try {
      token = await this.#token();
    } catch (error) {
      return this.#lost(line, /** @type {SignalingUnavailable} */ (error).message);
    }
    if (line !== this.#line) return;
    let socket;
    try {
      socket = new WebSocket(this.#url);
    } catch (error) {
      // SecurityError: it is the same at each try. Not its text, which has the whole URL.
      const name = error instanceof Error ? error.name : typeof error;
      const why = "a page of https:// may open wss:// only, and one with a Content-Security-Policy what that allows";
      return this.#fault(new ConfigError(`this page can't open a WebSocket to ${this.#service} (${name}): ${why}`));
    }
    socket.binaryType = "arraybuffer";
    line.socket = socket;
    socket.onopen = () => {
      line.isOpen = true;
      line.heardAt = this.#now();
      this.#feed(() => this.#session.connected(this.#now(), token));
    };
    socket.onmessage = ({ data }) => this.#received(line, data);
    socket.onclose = ({ code, reason }) => this.#lost(line, this.#whyClosed(line, code, reason));
  }

  /** The join token of this attempt. */
  async #token() {
    const source = this.#joinToken;
    if (typeof source !== "function") return source;
    let token;
    try {
      token = await source();
    } catch (error) {
      // Not its text, which may have a token or a password in it.
      const name = error instanceof Error ? error.name : typeof error;
      throw new SignalingUnavailable(`no join token: joinToken threw ${name}`);
    }
    if (typeof token !== "string" || !JOIN_TOKEN.test(token)) {
      throw new SignalingUnavailable(`what joinToken returned ${BAD_JOIN_TOKEN}`);
    }
    return token;
  }

  /**
   * @param {RelayLine} line
   * @param {string | ArrayBuffer} message
   */
  #received(line, message) {
    const now = this.#now();
    line.heardAt = now;
    const isAnswer = isPong(message);
    if (isAnswer && line.pongs < line.pings) line.pongs++;
    if (line.pongs >= line.doubted) {
      line.giveUpAt = null;
      line.isPutOff = false;
    }
    const data = typeof message === "string" ? message : new Uint8Array(message);
    if (data.length > MAX_SIGNALING_MESSAGE) {
      const text = `${this.#service} sent ${data.length} bytes in one message, the limit is ${MAX_SIGNALING_MESSAGE}`;
      return this.#lost(line, text);
    }
    if (!isAnswer) this.#feed(() => this.#session.received(data, now));
    this.#flush(line);
    this.#arm();
  }

  /**
   * The connection is gone, or was not made.
   * @param {RelayLine} line
   * @param {string} reason
   */
  #lost(line, reason) {
    if (line !== this.#line) return;
    const { isOpen } = line;
    this.#hangUp();
    const now = this.#now();
    this.#feed(() => (isOpen ? this.#session.dropped(reason, now) : this.#session.connectionFailed(reason, now)));
  }

  /** @param {() => SessionOutput[]} input */
  #feed(input) {
    let outputs;
    try {
      outputs = input();
    } catch (error) {
      this.#fault(error);
      return;
    }
    this.#do(outputs);
  }

  /**
   * Let go of the connection: nothing of it comes here any more. What it has buffered goes out first,
   * and `close` waits for that, `CLOSE_TIMEOUT` seconds at most.
   */
  #hangUp() {
    const line = this.#line;
    this.#line = null;
    clearTimeout(this.#looker);
    this.#looker = undefined;
    const socket = line?.socket;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState === WebSocket.CLOSED) return;
    /** @type {Promise<void>} */
    const closed = new Promise((resolve) => {
      const patience = setTimeout(resolve, CLOSE_TIMEOUT * 1000);
      socket.onclose = () => {
        clearTimeout(patience);
        resolve();
      };
    });
    this.#hangUps.add(closed);
    void closed.then(() => {
      socket.onclose = null;
      this.#hangUps.delete(closed);
    });
    socket.close(1000);
  }

  /**
   * Give frames to the socket as far as it has room.
   * @param {RelayLine} line
   * @param {number} [limit]
   */
  #flush(line, limit = SOCKET_BUFFER) {
    const { socket, frames } = line;
    if (line !== this.#line || socket === null) return;
    while (frames.length && socket.bufferedAmount < limit) {
      socket.send(/** @type {Uint8Array<ArrayBuffer>} */ (frames.shift()));
    }
    if (frames.length && this.#looker === undefined) {
      this.#looker = setTimeout(() => {
        this.#looker = undefined;
        this.#flush(line);
      }, SOCKET_LOOK * 1000);
    }
  }

  /**
   * @param {RelayLine} line
   * @param {number} code
   * @param {string} reason
   */
  #whyClosed(line, code, reason) {
    if (line.isOpen) {
      if (code === 1006 || code === 1005) return `the connection to ${this.#service} broke`;
      return `${this.#service} closed the connection (${code}${reason && ` ${reason}`})`;
    }
    // The browser does not say why (WHATWG WebSockets, section 4): a page could scan networks else.
    if (globalThis.navigator?.onLine === false) return `${this.#service} can't be reached: this device is offline`;
    const origin = globalThis.location?.origin;
    return (
      `${this.#service} can't be reached: is it running, is there a network` +
      (this.#url.startsWith("wss:") ? ", is its TLS certificate trusted" : "") +
      (origin ? `, and does it allow pages of ${origin} (RelayConfig.origins)?` : "?")
    );
  }

  // --- whether it works ---

  /**
   * @param {RelayLine} line
   * @param {number} now
   * @param {number} patience
   */
  #ping(line, now, patience) {
    line.pings++;
    line.socket?.send(encode({ kind: "Ping" }));
    line.giveUpAt = now + patience;
    line.patience = patience;
    line.isPutOff = false;
  }

  /**
   * @param {RelayLine} line
   * @param {boolean} networkChanged
   */
  #doubt(line, networkChanged) {
    if (line.giveUpAt !== null && line.patience <= CHECK_TIMEOUT) return; // it is being looked at
    const now = this.#now();
    if (this.#session.state === "seated") {
      this.#ping(line, now, CHECK_TIMEOUT);
      line.doubted = line.pings;
    } else if (this.#session.state === "joining" && networkChanged) {
      // Until the join is answered nothing else may be said: its answer is looked for.
      line.giveUpAt = now + CHECK_TIMEOUT;
      line.patience = CHECK_TIMEOUT;
    }
  }

  /**
   * When to look after the connection next.
   * @returns {number | null}
   */
  #watchAt() {
    const line = this.#line;
    if (!line?.isOpen) return null;
    if (line.giveUpAt !== null) return line.giveUpAt;
    return this.#session.state === "seated" ? line.heardAt + KEEPALIVE : null;
  }

  /** @param {number} now */
  #watch(now) {
    const line = this.#line;
    const at = this.#watchAt();
    if (line === null || at === null || now < at) return;
    if (line.giveUpAt === null) {
      this.#ping(line, now, KEEPALIVE);
    } else if (now - at > TIMER_LATE && !line.isPutOff) {
      line.isPutOff = true;
      line.giveUpAt = now + CHECK_TIMEOUT;
    } else {
      const isDoubted = line.pongs < line.doubted || this.#session.state === "joining";
      this.#lost(line, `${this.#service} did not answer within ${line.patience} s`);
      // There is another way now, or none.
      if (isDoubted && this.#isUnderWay()) this.#do(this.#session.hurry(now));
    }
  }

  // --- the timer ---

  #deadline() {
    if (this.#end !== null) return null;
    const deadline = this.#lateTick ?? this.#session.nextDeadline();
    const watch = this.#watchAt();
    return deadline === null ? watch : watch === null ? deadline : Math.min(deadline, watch);
  }

  #arm() {
    const at = this.#deadline() ?? Infinity;
    // A timer that is too early looks again; one is not made for each message.
    if (at >= this.#timerAt && at !== Infinity) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerAt = at;
    if (at === Infinity) return;
    const wait = Math.min(Math.max(0, at - this.#now()), LONGEST_TIMER);
    this.#timer = setTimeout(() => this.#wake(), Math.ceil(wait * 1000));
  }

  #wake() {
    this.#timerAt = Infinity;
    const now = this.#now();
    this.#watch(now);
    const due = this.#isUnderWay() ? this.#session.nextDeadline() : null;
    if (due !== null && now >= due) {
      const { state } = this.#session;
      const isAnswerDue = state === "connecting" || state === "joining";
      if (isAnswerDue && this.#lateTick === null && now - due > TIMER_LATE) {
        this.#lateTick = now + TIMER_LATE;
      } else if (this.#lateTick === null || now >= this.#lateTick) {
        this.#lateTick = null;
        this.#feed(() => this.#session.tick(now));
      }
    } else {
      this.#lateTick = null;
    }
    this.#arm();
  }
}
