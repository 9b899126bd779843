// `PeerManager`: a room's peers, found, connected and kept connected. The same as meshpeer's
// manager.py.

import {
  ConfigError,
  InvalidData,
  MeshTimeout,
  MessageTooLarge,
  PeerClosed,
  ProtocolError,
  TooManyChannels,
  VERSION,
  decodeClient,
  encode,
  encodeValue,
  repr,
} from "./codec.js";
import { MeshConfig } from "./config.js";
import { Connection, LOW_BUFFER } from "./connection.js";
import { Files } from "./files.js";
import { checkLabel, encodedMessage } from "./peer.js";
import { takeSeat } from "./seat.js";
import { Shell } from "./shell.js";
import { scoped } from "./streams.js";
import { RelayTransport, relayAddress, urlWithoutSecrets } from "./transport.js";

/** @import { Join, Metadata } from "./codec.js" */
/** @import { MeshSettings } from "./config.js" */
/** @import { FileProgress, FileReceived, FileSink } from "./files.js" */
/** @import { Message, PathTest, Peer } from "./peer.js" */
/** @import { ShellParts } from "./shell.js" */
/** @import { JoinTokenSource } from "./transport.js" */

/**
 * A Map that can only be read, and shows what is there now.
 * @template K, V
 */
class MapView {
  #map;

  /** @param {ReadonlyMap<K, V>} map */
  constructor(map) {
    this.#map = map;
  }

  get size() {
    return this.#map.size;
  }

  /** @param {K} key */
  get(key) {
    return this.#map.get(key);
  }

  /** @param {K} key */
  has(key) {
    return this.#map.has(key);
  }

  keys() {
    return this.#map.keys();
  }

  values() {
    return this.#map.values();
  }

  entries() {
    return this.#map.entries();
  }

  /** @param {(value: V, key: K) => void} callback */
  forEach(callback) {
    for (const [key, value] of this.#map) callback(value, key);
  }

  [Symbol.iterator]() {
    return this.#map.entries();
  }
}

/** Tools to look into a `PeerManager` that runs, as `PeerManager.debug`. */
export class Debug {
  #shell;
  #stats;

  /**
   * @param {Shell} shell
   * @param {() => object} stats
   */
  constructor(shell, stats) {
    this.#shell = shell;
    this.#stats = stats;
  }

  /** How it stands with each peer: the latest `ConnectionReport`s. */
  getConnections() {
    return [...this.#shell.peers.keys()].map((peerId) => this.#shell.report(peerId));
  }

  /**
   * Begin an ICE restart (RFC 8445, section 9) with a peer, or with all.
   *
   * Returns at once; `connection-report` tells when it took over. Where there is no connection nothing
   * happens. Throws `ConfigError` for a peer that is not there, `MeshClosed`.
   * @param {string | null} [peerId]
   */
  forceICERestart(peerId = null) {
    this.#shell.checkRunning();
    if (peerId !== null && !this.#shell.peers.has(peerId)) {
      throw new ConfigError(`peer ${repr(String(peerId))} is not in the room`);
    }
    this.#shell.restartIce(peerId);
  }

  /**
   * A round trip to every peer over its path, all at the same time.
   *
   * `timeout` is in seconds. One that does not answer, or is not connected, is told with the reason.
   * Throws `MeshClosed`.
   * @param {{timeout?: number}} [options]
   * @returns {Promise<PathTest[]>}
   */
  async testP2PWithAllPeers({ timeout = 5 } = {}) {
    this.#shell.checkRunning();
    return Promise.all([...this.#shell.peers.values()].map((peer) => this.#shell.testPath(peer, timeout)));
  }

  /** What `PeerManager.stats` gives. */
  getStats() {
    return this.#stats();
  }

  /** How it stands with the relay. */
  getSignalingStatus() {
    return this.#shell.signalingStatus();
  }

  /**
   * All there is to know, as plain JSON: what a report of a fault should have with it. There are no
   * secrets and nothing of what was said in it, but addresses.
   */
  async getDiagnostics() {
    const shell = this.#shell;
    const peers = await Promise.all(
      [...shell.peers.keys()].map(async (peerId) => {
        const known = { report: shell.report(peerId), counts: shell.counts(peerId) };
        let connection;
        try {
          connection = await shell.connectionStats(peerId);
        } catch (error) {
          connection = { error: String(error) };
        }
        return [peerId, { ...known, connection }];
      }),
    );
    return {
      at: new Date().toISOString(),
      agent: globalThis.navigator?.userAgent ?? null,
      visible: globalThis.document?.visibilityState ?? null,
      online: globalThis.navigator?.onLine ?? null,
      signaling: shell.signalingStatus(),
      timers: { nextDeadline: shell.nextDeadline },
      peers: Object.fromEntries(peers),
      iceServers: [...shell.serverReports.values()],
      events: [...shell.latest],
    };
  }
}

/**
 * Enters a room, connects to everybody in it, and keeps it so.
 *
 * What happens is told by events: a `CustomEvent` whose `detail` is the event, `{kind: "PeerJoined", …}`
 * as "peer-joined", and so on; `{kind: "Message", …}` as "message": who listens to that has taken it.
 * Listeners are called in order, when all that belongs to it is done; what one throws is reported as an
 * uncaught error is, and disturbs nobody else. Durations are in seconds. Where a method takes an
 * AbortSignal, aborting it makes the call throw the signal's reason.
 */
export class PeerManager extends EventTarget {
  /** @type {Shell} */
  #shell;
  #debug;
  #peers;
  /** Those to "message", by what was given and whether it captures.
      @type {Map<EventListenerOrEventListenerObject, Map<boolean, () => void>>} */
  #messageListeners = new Map();

  /**
   * `peerId` is random when it is not given. `metadata` is JSON-able and small (4096 bytes). `config`
   * is a `MeshConfig`, or some of its settings. `joinToken` shows to the relay that we may join, where
   * it asks for that: a token, or a function that gives one for each connection, as one that expires
   * needs.
   *
   * `keepSeat`: a page that is loaded anew in the same tab is the same peer again, at once; a tab that
   * was duplicated is another one. What that takes is kept in sessionStorage. `resumeToken` is what an
   * earlier page with this `peerId` had, for who keeps it himself.
   *
   * Throws `ConfigError` for arguments that can't be right. Nothing is contacted before `start`.
   * @param {string | URL} url of the relay (`wss://` or `ws://`), or of a page of the relay's
   * @param {object} options
   * @param {string} options.room
   * @param {string | null} [options.peerId]
   * @param {string | null} [options.name]
   * @param {Metadata | null} [options.metadata]
   * @param {Partial<MeshSettings> | MeshConfig} [options.config]
   * @param {JoinTokenSource | null} [options.joinToken]
   * @param {string | null} [options.resumeToken]
   * @param {boolean} [options.keepSeat]
   * @param {Partial<ShellParts>} [options.parts] for tests: what the browser is to be replaced with
   */
  constructor(
    url,
    {
      room,
      peerId = null,
      name = null,
      metadata = null,
      config = {},
      joinToken = null,
      resumeToken = null,
      keepSeat = true,
      parts = {},
    },
  ) {
    super();
    const settings = config instanceof MeshConfig ? config : new MeshConfig(config);
    const join = checkedJoin({
      kind: "Join",
      version: VERSION,
      room,
      peerId: peerId ?? randomId(8),
      incarnation: randomId(16),
      name,
      metadata: metadata ?? {},
      onConflict: settings.onConflict,
      token: resumeToken,
      session: null,
      received: 0,
      attempt: 0,
      joinToken: null,
    });
    const seat = () => takeSeat(`${urlWithoutSecrets(relayAddress(url).href)} ${room}`, { peerId });
    this.#shell = new Shell(join, settings, {
      transport: (told) => new RelayTransport(url, { config: settings, joinToken, ...told }),
      connection: (observer) => new Connection(observer),
      files: (options) => new Files(options),
      seat: keepSeat && resumeToken === null ? seat : null,
      isIdRandom: peerId === null,
      newPeerId: () => randomId(8),
      target: this,
      lowBuffer: LOW_BUFFER,
      ...parts,
    });
    this.#debug = new Debug(this.#shell, () => this.stats());
    this.#peers = new MapView(this.#shell.peers);
  }

  // --- life ---

  /**
   * Enter the room; resolves when the relay has given us a seat.
   *
   * Throws `PeerIdTaken`, `RoomFull`, `Unauthorized`, `Forbidden` or another `RefusedError` when the
   * relay says no. An id that is held for a page which lost its connection is waited for, as is a relay
   * that can't be reached, up to `config.joinTimeout`: then `PeerIdTaken`, or `SignalingUnavailable`,
   * is thrown. `MeshClosed` when it was started before. After an error, or when it is aborted, the
   * manager is closed and nothing is left behind.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async start({ signal = null } = {}) {
    await this.#shell.start(signal);
  }

  /**
   * Leave the room: says goodbye, closes every connection, and leaves nothing behind.
   *
   * Waits up to half of `config.closeTimeout` for what was sent to arrive, and up to `closeTimeout` for
   * connections that do not close. May be called more than once, at any time, and from a listener.
   * When it is aborted it waits for no arrivals, tears down, and then throws.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async close({ signal = null } = {}) {
    await this.#shell.close(signal);
  }

  /** `await using` closes it. */
  async [/** @type {any} */ (Symbol).asyncDispose ?? Symbol("asyncDispose")]() {
    await this.close();
  }

  // --- what it knows ---

  /** Our id in the room; final after `start`. */
  get peerId() {
    return this.#shell.join.peerId;
  }

  /** Random, and another one for every `PeerManager`. */
  get incarnation() {
    return this.#shell.join.incarnation;
  }

  get room() {
    return this.#shell.join.room;
  }

  /** Our display name, as the others see it: where the relay gives one, that one, from `start` on. */
  get name() {
    return this.#shell.name;
  }

  /** What we tell of ourselves, as it is now. */
  get metadata() {
    return this.#shell.join.metadata;
  }

  /** `new → joining → joined ⇄ reconnecting → closed`: how it stands with the relay. */
  get state() {
    return this.#shell.state;
  }

  /** The secret that lets a later page take over this peer id; null before `start`. */
  get resumeToken() {
    return this.#shell.token;
  }

  /** Everybody else in the room by id, connected or not: a live, read-only view of a Map. */
  get peers() {
    return this.#peers;
  }

  /** Tools to look into it while it runs. */
  get debug() {
    return this.#debug;
  }

  /**
   * A snapshot: how each peer is connected, what went to and fro, and the ICE servers. Counts of a peer
   * are of this incarnation, also from before it was away. Plain JSON.
   */
  stats() {
    const shell = this.#shell;
    const peers = [...shell.peers].map(([peerId, peer]) => {
      const { incarnation, name, state, iceState, path, rtt } = peer;
      return { peerId, incarnation, name, state, iceState, path, rtt, ...shell.counts(peerId) };
    });
    /** @type {Record<string, number>} */
    const paths = {};
    for (const { path } of peers) if (path !== null) paths[path] = (paths[path] ?? 0) + 1;
    return {
      kind: "MeshStats",
      peerId: this.peerId,
      room: this.room,
      state: this.state,
      peers: Object.fromEntries(peers.map((each) => [each.peerId, each])),
      paths,
      iceServers: Object.fromEntries(shell.serverReports),
    };
  }

  // --- waiting ---

  /**
   * Wait until at least `count` peers are connected, and return those that are.
   *
   * `timeout` is in seconds, null for no limit. Throws `MeshTimeout`, `MeshClosed`.
   * @param {number} [count]
   * @param {{timeout?: number | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer[]>}
   */
  async waitForPeers(count = 1, { timeout = null, signal = null } = {}) {
    const found = () => {
      const peers = [...this.#shell.peers.values()].filter((peer) => peer.state === "connected");
      return peers.length >= count ? peers : null;
    };
    return this.#waitUntil(found, { timeout, signal }, () => {
      const states = [...this.#shell.peers.values()].map((peer) => `${peer.id} ${peer.state}`).join(", ");
      return `${count} connected peers (there are: ${states || "none"})`;
    });
  }

  /**
   * Wait until this peer is there and connected.
   *
   * `timeout` is in seconds, null for no limit. Throws `MeshTimeout`, `MeshClosed`.
   * @param {string} peerId
   * @param {{timeout?: number | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer>}
   */
  async waitForPeer(peerId, { timeout = null, signal = null } = {}) {
    const found = () => {
      const peer = this.#shell.peers.get(peerId);
      return peer?.state === "connected" ? peer : null;
    };
    return this.#waitUntil(found, { timeout, signal }, () => {
      const state = this.#shell.peers.get(peerId)?.state ?? "not in the room";
      return `peer ${repr(peerId)} to be connected (it is ${state})`;
    });
  }

  /**
   * @template T
   * @param {() => T | null} found
   * @param {{timeout: number | null, signal: AbortSignal | null}} options
   * @param {() => string} missing
   * @returns {Promise<T>}
   */
  async #waitUntil(found, { timeout, signal }, missing) {
    const late = () => new MeshTimeout(`waited ${timeout} s for ${missing()}`);
    return scoped({ timeout, signal, late }, async (scope) => {
      for (;;) {
        const value = found();
        if (value !== null) return value;
        this.#shell.checkRunning();
        await this.#shell.bell.wait(scope);
      }
    });
  }

  // --- messages and events ---

  /**
   * Send to everybody in the room, encoded once. Returns those who will get it.
   *
   * Resolves when it is accepted for all, as in `Peer.send`: whoever is not connected yet gets it then.
   * A peer that leaves meanwhile, or does not take messages of this size or one channel more, is left
   * out. Throws `InvalidData`, `MessageTooLarge`, `ConfigError`, `MeshClosed`. When it is aborted, it
   * was accepted for some and not for others.
   * @param {unknown} data
   * @param {string} [channel]
   * @param {{signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer[]>}
   */
  async broadcast(data, channel = "default", { signal = null } = {}) {
    const shell = this.#shell;
    shell.checkRunning();
    if (channel !== "default") checkLabel("channel", channel);
    const message = encodedMessage(data, channel, shell.maxMessageSize);
    const peers = [...shell.peers.values()];
    const results = await Promise.allSettled(peers.map((peer) => shell.send(peer, message, signal)));
    for (const result of results) {
      if (result.status === "fulfilled") continue;
      // What concerns one peer only, it has to itself: gone, or its limit is lower than ours.
      const { reason } = result;
      if (!(reason instanceof PeerClosed || reason instanceof MessageTooLarge || reason instanceof TooManyChannels)) {
        throw reason;
      }
    }
    return peers.filter((_, number) => results[number].status === "fulfilled");
  }

  /**
   * Iterate (`for await`) over the messages of all peers, or over those of one channel.
   *
   * Every caller gets every message from the moment of this call. What arrived before anybody asked is
   * kept for the first who does. Who reads slowly slows the senders down: up to `config.channelWindow`
   * bytes of a peer's channel wait here, and its large messages. The iterator ends with the manager;
   * when something else than `close` ended it, it throws that.
   * @param {string | null} [channel]
   * @returns {AsyncIterableIterator<Message>}
   */
  messages(channel = null) {
    return this.#shell.messages(channel);
  }

  /**
   * Iterate over everything that happens from the moment of this call.
   *
   * Ends after `Closed`. Throws `SlowReader` when more than `config.maxPendingEvents` were not read.
   * @returns {AsyncIterableIterator<any>}
   */
  events() {
    return this.#shell.events();
  }

  /**
   * Wait for the next file that a peer sends, or take the one that waits.
   *
   * `sender` is the id of the peer to take it from, any by default. `timeout` is how long to wait for
   * one to be offered, in seconds, null for no limit. It becomes a Blob, or goes to `sink`. Throws
   * `MeshTimeout`, `TransferFailed` when the sender gave up or what arrived is not what was offered,
   * `PeerClosed` when the sender is gone, `MeshClosed`. When it is aborted, the sender is told.
   * @param {object} [options]
   * @param {string | null} [options.sender]
   * @param {number | null} [options.timeout]
   * @param {((progress: FileProgress) => unknown) | null} [options.onProgress]
   * @param {FileSink | WritableStream<Uint8Array> | null} [options.sink]
   * @param {AbortSignal | null} [options.signal]
   * @returns {Promise<FileReceived>}
   */
  async receiveFile(options = {}) {
    this.#shell.checkRunning();
    return this.#shell.files.receive(options);
  }

  /**
   * Say no to the file that this peer offers. False when it offers none.
   * @param {string} sender
   * @param {string} [why]
   */
  refuseFile(sender, why) {
    return this.#shell.files.refuse(sender, why);
  }

  /** The files that are offered and wait to be received or refused. */
  get fileOffers() {
    return this.#shell.files.offers;
  }

  /**
   * Tell the room a new display name or new metadata; what is not given stays as it is.
   *
   * Throws `ConfigError` for values that can't be right, `MeshClosed`, and `SignalingBacklog` when the
   * relay is away and too much waits for it.
   * @param {{name?: string | null, metadata?: Metadata | null}} changes
   */
  update({ name = null, metadata = null }) {
    const { join } = this.#shell;
    checkedJoin({ ...join, name: name ?? join.name, metadata: metadata ?? join.metadata });
    this.#shell.update(name, metadata);
  }

  // --- listeners ---

  /**
   * As any EventTarget's. Messages go to listeners of "message" while there are some.
   * @override
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} callback
   * @param {AddEventListenerOptions | boolean | null} [options]
   */
  addEventListener(type, callback, options) {
    if (type !== "message" || callback === null) {
      super.addEventListener(type, callback, options ?? {});
      return;
    }
    const given = typeof options === "boolean" ? { capture: options } : (options ?? {});
    const { capture = false, once = false, passive, signal } = given;
    if (signal?.aborted) return;
    const known = this.#messageListeners.get(callback) ?? new Map();
    if (known.has(capture)) return;
    const forget = () => {
      super.removeEventListener("message", listener, { capture });
      signal?.removeEventListener("abort", forget);
      known.delete(capture);
      if (!known.size) this.#messageListeners.delete(callback);
      if (!this.#messageListeners.size) this.#shell.unlisten();
    };
    /** @param {Event} event */
    const listener = (event) => {
      if (once) forget();
      if (typeof callback === "function") return callback.call(this, event);
      return callback.handleEvent(event);
    };
    known.set(capture, forget);
    const isFirst = !this.#messageListeners.size;
    this.#messageListeners.set(callback, known);
    signal?.addEventListener("abort", forget);
    super.addEventListener("message", listener, { capture, passive });
    if (isFirst) {
      this.#shell.listen((detail) => this.dispatchEvent(new CustomEvent("message", { detail })));
    }
  }

  /**
   * @override
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} callback
   * @param {EventListenerOptions | boolean | null} [options]
   */
  removeEventListener(type, callback, options) {
    if (type !== "message" || callback === null) {
      super.removeEventListener(type, callback, options ?? {});
      return;
    }
    const capture = typeof options === "boolean" ? options : (options?.capture ?? false);
    this.#messageListeners.get(callback)?.get(capture)?.();
  }
}

/**
 * So many random bytes, for an id: letters and digits, `-` and `_`.
 * @param {number} size
 */
function randomId(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * What the relay would make of it, before it is asked. Throws `ConfigError`.
 * @param {Join} join
 */
function checkedJoin(join) {
  try {
    const isObject = typeof join.metadata === "object" && !Array.isArray(join.metadata);
    if (!isObject) throw new InvalidData("it is no object");
    encodeValue(join.metadata); // what JSON would leave out without a word
  } catch (error) {
    if (!(error instanceof InvalidData)) throw error;
    throw new ConfigError(`metadata must be JSON-able: ${error.message}`);
  }
  try {
    decodeClient(encode(join));
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    const field = error.field.replace(/^\$\./, "").replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
    const said = error.message.replace(/^malformed message from the client: /, "");
    if (field === "token") throw new ConfigError(`resumeToken can't be that: ${said}`);
    const value = /** @type {any} */ (join)[field];
    const shown = typeof value === "string" ? repr(value) : JSON.stringify(value);
    throw new ConfigError(`${field} can't be ${String(shown).slice(0, 80)}: ${said}`);
  }
  return join;
}
