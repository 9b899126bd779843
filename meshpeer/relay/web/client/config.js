// Every limit and every timeout, in one place: the same as meshpeer's config.MeshConfig, without what
// a page has no say in (the interfaces, the addresses and the ports of its machine).

import { ConfigError, repr } from "./codec.js";
import { PRIORITIES } from "./delivery.js";

/** @import { OnConflict } from "./codec.js" */
/** @import { Priority } from "./delivery.js" */
/** @import { IceServer } from "./node.js" */

/**
 * One STUN or TURN server as W3C WebRTC's RTCIceServer has it.
 * @typedef {{urls: string | readonly string[], username?: string | null, credential?: string | null}} IceServerInit
 */

/**
 * How a `PeerManager` behaves. Times are seconds, sizes are bytes, unless a name says otherwise.
 * @typedef {object} MeshSettings
 * @property {OnConflict} onConflict  an id that is in use: refuse to start, take it over (same resume
 *   token), or rename
 * @property {readonly IceServerInit[]} iceServers  STUN and TURN servers, besides those that the relay
 *   names; nothing is contacted that neither of them named
 * @property {"all" | "relay"} iceTransportPolicy  "relay": only candidates of TURN servers are used,
 *   so that no address of ours is shown (W3C WebRTC, RTCIceTransportPolicy)
 * @property {number} connectTimeout  a connection attempt, and an ICE restart that was answered, that
 *   takes longer has failed
 * @property {number} candidatesTimeout  the other side is taken to have sent its last candidate this
 *   long after the latest
 * @property {number} restartTimeout  an ICE restart that is not answered within this is given up, and
 *   begun again if need be
 * @property {number} upgradeFirst  the first wait before a better path than TURN is looked for; it
 *   doubles
 * @property {number} upgradeMax  the longest wait between two such tries
 * @property {number} retryFirst  the first wait before another attempt, after two have failed; it
 *   doubles
 * @property {number} retryMax  the longest wait between two attempts
 * @property {number} pingInterval  a side that sent nothing for this long on a connected link pings
 * @property {number} silenceTimeout  a connected link on which nothing was heard for this long is
 *   "disconnected"
 * @property {number} disconnectedTimeout  a disconnected link that is not heard of for this long, in
 *   spite of ICE restarts, gets a new connection
 * @property {number} stableAfter  a connection that held for this long has earned a fresh start of
 *   failures and waits
 * @property {number} joinTimeout  how long `PeerManager.start` tries to enter the room
 * @property {number} signalingRetryFirst  the first wait before the relay is tried again (full
 *   jitter); it doubles
 * @property {number} signalingRetryMax  the longest wait between two tries
 * @property {number} closeTimeout  the longest that `PeerManager.close` waits for others
 * @property {number} maxMessageSize  the largest message that is sent or accepted, after encoding
 * @property {number} sendWindow  how much one channel to one peer may have that was accepted and not
 *   acknowledged, before `Peer.send` waits
 * @property {number} receiveWindow  how much of its large messages a peer may send before the
 *   application has taken them: what does not fit into `channelWindow`. Also how much of its plain
 *   channels is kept unread
 * @property {number} channelWindow  how much a peer may send on each channel before the application
 *   has taken it
 * @property {number} maxChannels  how many channels of messages a peer may use towards us
 * @property {Readonly<Record<string, Priority>>} channelPriorities  how the channels share a path when
 *   all have something to send: "very-low", "low" (when not named), "medium", "high"; each gets twice
 *   the share of the one below
 * @property {number} ackDelay  the longest that a received message waits for its acknowledgement
 * @property {number | null} relayAfter  data flows over the relay when there was no direct path for so
 *   long; 0: from the first moment, until there is one; null: never
 * @property {number} sendBuffer  how much `Channel.send` leaves in the buffer of its plain channel
 *   before it waits
 * @property {number} maxPendingEvents  how many events a slow reader of `PeerManager.events` may be
 *   behind before it is ended
 * @property {number} maxPendingSignals  how many signals are kept while the relay is away
 */

/** @type {MeshSettings} */
const MESH_DEFAULTS = {
  // <generated: config>
  onConflict: "reject",
  iceServers: [],
  iceTransportPolicy: "all",
  connectTimeout: 8,
  candidatesTimeout: 5,
  restartTimeout: 5,
  upgradeFirst: 5,
  upgradeMax: 300,
  retryFirst: 1,
  retryMax: 30,
  pingInterval: 1,
  silenceTimeout: 2.5,
  disconnectedTimeout: 15,
  stableAfter: 5,
  joinTimeout: 10,
  signalingRetryFirst: 0.5,
  signalingRetryMax: 30,
  closeTimeout: 2,
  maxMessageSize: 16777216,
  sendWindow: 16777216,
  receiveWindow: 16777216,
  channelWindow: 524288,
  maxChannels: 32,
  channelPriorities: {"meshpeer.file": "very-low"},
  ackDelay: 0.05,
  relayAfter: 3,
  sendBuffer: 1048576,
  maxPendingEvents: 10000,
  maxPendingSignals: 1000,
  // </generated>
};

/**
 * The least and the most of each.
 * @type {readonly [name: keyof MeshSettings, low: number, high: number, isWhole?: boolean][]}
 */
const MESH_RANGES = [
  ["connectTimeout", 0.05, 3600],
  ["candidatesTimeout", 0.05, 3600],
  ["restartTimeout", 0.05, 3600],
  ["upgradeFirst", 0.05, 3600],
  ["upgradeMax", 0.05, 3600],
  ["pingInterval", 0.05, 3600],
  ["silenceTimeout", 0.05, 3600],
  ["disconnectedTimeout", 0.05, 3600],
  ["retryFirst", 0.01, 3600],
  ["retryMax", 0.01, 3600],
  ["signalingRetryFirst", 0.01, 3600],
  ["signalingRetryMax", 0.01, 3600],
  ["stableAfter", 0, 3600],
  ["joinTimeout", 0.1, 3600],
  ["closeTimeout", 0, 60],
  ["maxMessageSize", 1024, 2 ** 30, true],
  ["receiveWindow", 64 * 1024, 2 ** 32, true],
  ["sendWindow", 16 * 1024, 2 ** 32, true],
  ["channelWindow", 32 * 1024, 2 ** 30, true],
  ["maxChannels", 2, 200, true],
  ["sendBuffer", 16 * 1024, 2 ** 30, true],
  ["ackDelay", 0, 10],
  ["relayAfter", 0, 3600],
  ["maxPendingEvents", 10, 10_000_000, true],
  // The relay acknowledges every 32nd: fewer would wait for each other for ever.
  ["maxPendingSignals", 100, 1_000_000, true],
];

/** @param {unknown} value */
const shownSetting = (value) => (typeof value === "string" ? repr(value) : String(value)).slice(0, 100);

/**
 * All settings, those that are not given with their defaults; frozen. Throws `ConfigError` that names
 * the field, the value and the range.
 */
export class MeshConfig {
  /** @param {Partial<MeshSettings>} [settings] */
  constructor(settings = {}) {
    if (typeof settings !== "object" || settings === null) {
      throw new ConfigError(`the config must be an object with settings, not ${shownSetting(settings)}`);
    }
    for (const name of Object.keys(settings)) {
      if (!Object.hasOwn(MESH_DEFAULTS, name)) {
        throw new ConfigError(`MeshConfig has no ${repr(name)} in a browser; it has ${Object.keys(MESH_DEFAULTS).join(", ")}`);
      }
    }
    const given = Object.entries(settings).filter(([, value]) => value !== undefined);
    const all = /** @type {MeshSettings} */ ({ ...MESH_DEFAULTS, ...Object.fromEntries(given) });
    checkSettings(all);
    this.onConflict = all.onConflict;
    /** @type {readonly IceServer[]} */
    this.iceServers = Object.freeze(all.iceServers.map(iceServerOf));
    this.iceTransportPolicy = all.iceTransportPolicy;
    this.connectTimeout = all.connectTimeout;
    this.candidatesTimeout = all.candidatesTimeout;
    this.restartTimeout = all.restartTimeout;
    this.upgradeFirst = all.upgradeFirst;
    this.upgradeMax = all.upgradeMax;
    this.retryFirst = all.retryFirst;
    this.retryMax = all.retryMax;
    this.pingInterval = all.pingInterval;
    this.silenceTimeout = all.silenceTimeout;
    this.disconnectedTimeout = all.disconnectedTimeout;
    this.stableAfter = all.stableAfter;
    this.joinTimeout = all.joinTimeout;
    this.signalingRetryFirst = all.signalingRetryFirst;
    this.signalingRetryMax = all.signalingRetryMax;
    this.closeTimeout = all.closeTimeout;
    this.maxMessageSize = all.maxMessageSize;
    this.sendWindow = all.sendWindow;
    this.receiveWindow = all.receiveWindow;
    this.channelWindow = all.channelWindow;
    this.maxChannels = all.maxChannels;
    this.channelPriorities = Object.freeze({ ...all.channelPriorities });
    this.ackDelay = all.ackDelay;
    this.relayAfter = all.relayAfter;
    this.sendBuffer = all.sendBuffer;
    this.maxPendingEvents = all.maxPendingEvents;
    this.maxPendingSignals = all.maxPendingSignals;
    Object.freeze(this);
  }
}

/** @param {MeshSettings} settings */
function checkSettings(settings) {
  if (!["reject", "takeover", "rename"].includes(settings.onConflict)) {
    throw new ConfigError(
      `MeshConfig.onConflict must be 'reject', 'takeover' or 'rename', not ${shownSetting(settings.onConflict)}`,
    );
  }
  if (!["all", "relay"].includes(settings.iceTransportPolicy)) {
    throw new ConfigError(
      `MeshConfig.iceTransportPolicy must be 'all' or 'relay', not ${shownSetting(settings.iceTransportPolicy)}`,
    );
  }
  if (!Array.isArray(settings.iceServers)) {
    throw new ConfigError(`MeshConfig.iceServers must be an array of servers, not ${typeof settings.iceServers}`);
  }
  for (const [name, low, high, isWhole = false] of MESH_RANGES) {
    const value = settings[name];
    if (value === null && name === "relayAfter") continue;
    // NaN is in no range.
    if (typeof value === "number" && value >= low && value <= high && (!isWhole || Number.isInteger(value))) continue;
    const what = isWhole ? "a whole number between" : "between";
    throw new ConfigError(`MeshConfig.${name} must be ${what} ${low} and ${high}, not ${shownSetting(value)}`);
  }
  const { channelPriorities, pingInterval, silenceTimeout, maxMessageSize, receiveWindow } = settings;
  if (typeof channelPriorities !== "object" || channelPriorities === null || Array.isArray(channelPriorities)) {
    throw new ConfigError(
      `MeshConfig.channelPriorities must map names of channels to priorities, not ${shownSetting(channelPriorities)}`,
    );
  }
  for (const [channel, priority] of Object.entries(channelPriorities)) {
    if (Object.hasOwn(PRIORITIES, priority)) continue;
    const names = Object.keys(PRIORITIES).join(", ");
    throw new ConfigError(
      `MeshConfig.channelPriorities[${repr(channel)}] must be one of ${names}, not ${shownSetting(priority)}`,
    );
  }
  if (silenceTimeout <= pingInterval) {
    throw new ConfigError(
      `MeshConfig.silenceTimeout (${silenceTimeout}) must be longer than pingInterval (${pingInterval}), ` +
        "or a quiet link is never connected",
    );
  }
  if (maxMessageSize > receiveWindow) {
    throw new ConfigError(
      `MeshConfig.maxMessageSize (${maxMessageSize}) must fit into receiveWindow (${receiveWindow})`,
    );
  }
}

/**
 * @param {IceServerInit} server
 * @returns {IceServer}
 */
function iceServerOf(server) {
  const { urls: given, username = null, credential = null } = server ?? {};
  const urls = typeof given === "string" ? [given] : given;
  if (!Array.isArray(urls) || !urls.length) {
    throw new ConfigError("MeshConfig.iceServers: each must have urls, one address or several");
  }
  for (const [name, value] of /** @type {const} */ ([["username", username], ["credential", credential]])) {
    // Not its value, which may be a secret.
    if (value !== null && typeof value !== "string") throw new ConfigError(`MeshConfig.iceServers: ${name} must be a text`);
  }
  for (const url of urls) {
    if (typeof url !== "string" || !/^(?:stun|turns?):/.test(url)) {
      throw new ConfigError(
        `MeshConfig.iceServers: urls must begin with stun:, turn: or turns:, not ${shownSetting(url)}`,
      );
    }
    if (url.startsWith("turn") && (username === null || credential === null)) {
      throw new ConfigError(`MeshConfig.iceServers: username and credential must be given for ${repr(url)}`);
    }
  }
  return { kind: "IceServer", urls: [...urls], username, credential };
}
