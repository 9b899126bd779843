// Which path we want to receive on: the direct one while there is one, else the relay.
//
// The two sides of a pair need not agree beforehand. Each says where it wants to receive (delivery
// has the frames for it), asks the other to do the same, and goes along with what the other asks
// for. Who hears nothing on a path is the one who knows, so its word counts; the latest word does.
//
// ROUTE_TABLE is the whole of it. An input that it does not list changes nothing.

import { Backoff, Deadlines, STALL } from "./timing.js";

/**
 * Where data comes from.
 * - none: nowhere; the relay is not asked yet, or can't be
 * - direct: over the link's connection, through TURN or not
 * - asking: the relay is asked for, and nothing has come over it
 * - relay: over the relay
 * @typedef {"none" | "direct" | "asking" | "relay"} RouteState
 */

/**
 * What can happen to a route.
 * - relay up: the relay forwards to this peer
 * - asked on the direct path: the other side wants to receive there, and that we do as well
 * - answered over the relay: it wants to receive there, as we asked
 * - patience: there was no direct path for `relayAfter`
 * - again: the relay was asked for a while ago
 * - silence: nothing came over the relay for `silenceTimeout`
 * - fault: what came over the relay can't be understood
 * @typedef {"link up" | "link down" | "relay up" | "relay down"
 *   | "asked on the direct path" | "asked over the relay" | "answered over the relay"
 *   | "patience" | "again" | "silence" | "fault"} RouteInput
 */

/**
 * In `state`, on `input`: do `actions`, be in `next`. `reason` is shown to users when the path
 * changes.
 * @typedef {[state: RouteState, input: RouteInput, next: RouteState, actions: string[],
 *   reason: string]} RouteRow
 */

/** @type {readonly RouteRow[]} */
export const ROUTE_TABLE = [
  // <generated: route-table>
  ["none", "link up", "direct", ["attachDirect"], "connected"],
  ["asking", "link up", "direct", ["attachDirect"], "connected"],
  ["relay", "link up", "direct", ["attachDirect"], "connected"],
  ["direct", "link down", "none", ["bePatient"], "no direct path"],
  ["none", "patience", "asking", ["attachRelay"], "no direct path for {} s"],
  ["asking", "again", "asking", ["attachRelay"], "no answer over the relay"],
  ["relay", "silence", "asking", ["attachRelay"], "nothing heard over the relay for {} s"],
  ["none", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["direct", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["relay", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["asking", "asked over the relay", "relay", ["answerRelay"], "no direct path for {} s"],
  ["asking", "answered over the relay", "relay", [], "no direct path for {} s"],
  ["relay", "asked on the direct path", "direct", ["answerDirect"], "the direct path is back"],
  ["asking", "asked on the direct path", "direct", ["answerDirect"], "the direct path is back"],
  ["direct", "asked on the direct path", "direct", ["answerDirect"], "connected"],
  ["none", "relay up", "none", ["retry"], "the relay is there"],
  ["asking", "relay down", "none", ["bePatient"], "the relay can't be reached"],
  ["relay", "relay down", "none", ["bePatient"], "the relay can't be reached"],
  ["asking", "fault", "none", ["waitMore"], "a fault over the relay"],
  ["relay", "fault", "none", ["waitMore"], "a fault over the relay"],
  // </generated>
];

/** @type {ReadonlyMap<string, RouteRow>} */
const ROUTE_INDEX = new Map(ROUTE_TABLE.map((row) => [`${row[0]}, ${row[1]}`, row]));

/**
 * Receive on this path from now on; `ask` the other side to do the same.
 * @typedef {{kind: "Attach", relay: boolean, ask: boolean}} Attach
 */
/**
 * Ask over the relay whether the other side is there; `Route.ponged` when it answers.
 * @typedef {{kind: "Ping", nonce: number}} RoutePing
 */
/** @typedef {Attach | RoutePing} RouteOutput */

/**
 * What a route takes of the settings (MeshConfig), in seconds. `relayAfter` null: never.
 * @typedef {object} RouteConfig
 * @property {number | null} relayAfter
 * @property {number} pingInterval
 * @property {number} silenceTimeout
 * @property {number} retryFirst
 * @property {number} retryMax
 */

/** One pair's. `start` comes first; then every method returns what is to be done. */
export class Route {
  /** @type {RouteState} */
  state = "none";
  /** Why it is in this state. */
  reason = "";
  /**
   * The latest round trip over the relay, in seconds.
   * @type {number | null}
   */
  rtt = null;

  #config;
  /** @type {Deadlines<"patience" | "again" | "look">} */
  #deadlines = new Deadlines();
  #again;
  #faults;
  #relay = false;
  #link = false;
  #overdue = false;
  #heardAt = 0;
  #nonce = 0;
  /** @type {number | null} */
  #pingedAt = null;
  // When it was pinged for the first time since something was heard.
  /** @type {number | null} */
  #askedAt = null;
  /** @type {RouteOutput[]} */
  #out = [];

  /** @param {RouteConfig} config */
  constructor(config) {
    this.#config = config;
    this.#again = new Backoff(config.pingInterval, 4 * config.pingInterval, 0);
    this.#faults = new Backoff(config.retryFirst, config.retryMax, 0);
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#deadlines.next();
  }

  /**
   * The peer is there.
   * @param {number} now
   */
  start(now) {
    this.#bePatient(now);
  }

  // --- inputs ---

  /**
   * The link's connection carries data, or no longer.
   * @param {number} now
   * @param {{up: boolean}} options
   */
  link(now, { up }) {
    this.#link = up;
    return this.#feed(up ? "link up" : "link down", now);
  }

  /**
   * The relay forwards to this peer, or no longer.
   * @param {number} now
   * @param {{up: boolean}} options
   */
  relay(now, { up }) {
    if (this.#config.relayAfter === null || up === this.#relay) return [];
    this.#relay = up;
    return this.#feed(up ? "relay up" : "relay down", now);
  }

  /**
   * The other side wants to receive on this path, and what is its latest word.
   * @param {number} now
   * @param {{relay: boolean, ask: boolean}} options
   */
  asked(now, { relay, ask }) {
    if (relay && !this.#relay) return [];
    // Its answer as well says that it is there, if we went along to the relay meanwhile.
    if (!relay) return this.#feed("asked on the direct path", now);
    return this.#feed(ask ? "asked over the relay" : "answered over the relay", now);
  }

  /**
   * Something came over the relay.
   * @param {number} now
   */
  heard(now) {
    this.#heardAt = now;
    this.#askedAt = null;
  }

  /**
   * The answer to a ping came.
   * @param {number} nonce
   * @param {number} now
   */
  ponged(nonce, now) {
    if (nonce !== this.#nonce || this.#pingedAt === null) return;
    this.rtt = now - this.#pingedAt;
    this.#pingedAt = null;
  }

  /**
   * What came over the relay was refused: it is asked again only after a while.
   * @param {number} now
   */
  fault(now) {
    return this.#feed("fault", now);
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {RouteOutput[]} */
    const out = [];
    for (const [name, at] of this.#deadlines.due(now)) {
      if (name === "patience") {
        this.#overdue = true;
        if (this.#relay) out.push(...this.#feed("patience", now));
      } else if (name === "again") {
        out.push(...this.#feed("again", now));
      } else {
        out.push(...this.#look(at, now));
      }
    }
    return out;
  }

  // --- the machine ---

  /**
   * @param {RouteInput} on
   * @param {number} now
   * @returns {RouteOutput[]}
   */
  #feed(on, now) {
    const row = ROUTE_INDEX.get(`${this.state}, ${on}`);
    if (!row) return [];
    const [, , , actions] = row;
    this.#setState(row, now);
    this.#out = [];
    for (const action of actions) Route.#ACTIONS[action](this, now);
    const out = this.#out;
    if (this.#link && (this.state === "none" || this.state === "asking")) {
      // We had gone along with the other side; by ourselves we have a direct path.
      out.push(...this.#feed("link up", now));
    }
    return out;
  }

  /**
   * @param {RouteRow} row
   * @param {number} now
   */
  #setState([, on, next, , reason], now) {
    if (next === this.state) return;
    this.state = next;
    const seconds = on === "silence" ? this.#config.silenceTimeout : this.#config.relayAfter;
    this.reason = reason.replace("{}", seconds === null ? "" : `${Number(seconds.toPrecision(6))}`);
    this.#deadlines.clearAll();
    if (next !== "asking") this.#again.reset();
    if (next === "direct") {
      this.#overdue = false;
      this.#faults.reset();
    } else if (next === "relay") {
      this.#heardAt = now;
      this.#askedAt = this.#pingedAt = null;
      this.#deadlines.set("look", now);
    }
  }

  /**
   * Is the relay still a path? It is asked when nothing was heard for a while.
   * @param {number} at
   * @param {number} now
   * @returns {RouteOutput[]}
   */
  #look(at, now) {
    const { pingInterval } = this.#config;
    if (now - at > STALL) this.#askedAt = this.#pingedAt = null;
    if (this.#askedAt !== null && this.#goneAt(this.#askedAt) <= now) return this.#feed("silence", now);
    let askAt = this.rtt === null ? now : this.#heardAt + pingInterval;
    if (this.#pingedAt !== null) askAt = Math.max(askAt, this.#pingedAt + pingInterval);
    /** @type {RouteOutput[]} */
    const out = [];
    if (askAt <= now) {
      this.#nonce++;
      this.#pingedAt = now;
      this.#askedAt ??= now;
      out.push({ kind: "Ping", nonce: this.#nonce });
      askAt = now + pingInterval;
    }
    if (this.#askedAt !== null) askAt = Math.min(askAt, this.#goneAt(this.#askedAt));
    this.#deadlines.set("look", askAt);
    return out;
  }

  /** @param {number} askedAt */
  #goneAt(askedAt) {
    // Who asks late, as a page that is slowed down, waits as long for the answer as others.
    const { pingInterval, silenceTimeout } = this.#config;
    return Math.max(this.#heardAt + silenceTimeout, askedAt + silenceTimeout - pingInterval);
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Route, now: number) => void>} */
  static #ACTIONS = {
    attachDirect: (it) => it.#out.push({ kind: "Attach", relay: false, ask: true }),
    answerDirect: (it) => it.#out.push({ kind: "Attach", relay: false, ask: false }),
    attachRelay: (it, now) => it.#attachRelay(now),
    answerRelay: (it) => it.#out.push({ kind: "Attach", relay: true, ask: false }),
    bePatient: (it, now) => it.#bePatient(now),
    retry: (it, now) => it.#retry(now),
    waitMore: (it, now) => it.#deadlines.set("patience", now + it.#faults.next(0)),
  };

  /** @param {number} now */
  #bePatient(now) {
    const { relayAfter } = this.#config;
    if (relayAfter !== null) this.#deadlines.set("patience", now + relayAfter);
  }

  /** @param {number} now */
  #retry(now) {
    if (this.#overdue) this.#deadlines.set("patience", now);
  }

  /** @param {number} now */
  #attachRelay(now) {
    this.#out.push({ kind: "Attach", relay: true, ask: true });
    this.#deadlines.set("again", now + this.#again.next(0));
  }
}
