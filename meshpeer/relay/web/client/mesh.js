// One node's view of the room: who is there, as which incarnation, and who dials whom.
//
// The roster comes from the signalling service; the links and their state from the node. Mesh only
// decides which links there are: at most one for each peer id, to its current incarnation.

import { compareTexts } from "./codec.js";
import { Deadlines } from "./timing.js";

/** @import { Member, MemberLeft, MemberUpdated } from "./codec.js" */

/**
 * Somebody is there: make a link. `dials`: this side does.
 * @typedef {{kind: "OpenLink", member: Member, dials: boolean}} OpenLink
 */
/**
 * Somebody is gone: end the link.
 * @typedef {{kind: "CloseLink", peerId: string, incarnation: string, reason: string}} CloseLink
 */
/**
 * A member has another name or other metadata.
 * @typedef {{kind: "Renamed", member: Member}} Renamed
 */
/**
 * Signals get to this peer, or don't.
 * @typedef {{kind: "Reachable", peerId: string, reachable: boolean}} Reachable
 */
/** @typedef {OpenLink | CloseLink | Renamed | Reachable} MeshOutput */

/**
 * `present`: the signalling service knows it. `alive`: a direct path to it is.
 * @typedef {{member: Member, present: boolean, alive: boolean}} RosterEntry
 */

/** The roster of one node. */
export class Mesh {
  #peerId;
  #incarnation;
  /** @type {Map<string, RosterEntry>} */
  #roster = new Map();
  /** When who is absent is given up. */
  #grace = new Deadlines();
  /** Whether the signalling service can't be reached: nobody's absence can be seen then. */
  #lost = false;
  #seatTimeout = 0;

  /**
   * @param {string} peerId our own
   * @param {string} incarnation
   */
  constructor(peerId, incarnation) {
    this.#peerId = peerId;
    this.#incarnation = incarnation;
  }

  /** Our own id. */
  get peerId() {
    return this.#peerId;
  }

  /** Our own incarnation. */
  get incarnation() {
    return this.#incarnation;
  }

  /**
   * Whether this peer is there.
   * @param {string} peerId
   */
  has(peerId) {
    return this.#roster.has(peerId);
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#grace.next();
  }

  // --- presence ---

  /**
   * The whole room, after a join or a loss that was not resumed.
   *
   * Who is missing has `seatTimeout` seconds to come back: after a restart of the service everybody
   * has to, and whoever does so first must not take the others for gone.
   * @param {readonly Member[]} members
   * @param {number} seatTimeout
   * @param {number} now
   */
  welcome(members, seatTimeout, now) {
    /** @type {MeshOutput[]} */
    const out = [];
    this.#seatTimeout = seatTimeout;
    const listed = new Set(members.map((member) => member.peerId));
    for (const [peerId, entry] of this.#roster) {
      if (!entry.present || listed.has(peerId)) continue;
      entry.present = false;
      this.#grace.set(peerId, now + seatTimeout);
      out.push({ kind: "Reachable", peerId, reachable: false });
    }
    this.#lookAgain(now);
    for (const member of members) out.push(...this.joined(member));
    return out;
  }

  /**
   * The service is back, and nothing was missed.
   * @param {number} now
   */
  resumed(now) {
    this.#lookAgain(now);
    return this.#present(true);
  }

  /** The service can't be reached; the roster stays as it is, until it is back. */
  signalingLost() {
    this.#lost = true;
    this.#grace.clearAll();
    return this.#present(false);
  }

  /**
   * All that the service knows are reachable now, or not.
   * @param {boolean} reachable
   * @returns {MeshOutput[]}
   */
  #present(reachable) {
    const present = [...this.#roster].filter(([, entry]) => entry.present);
    return present.map(([peerId]) => ({ kind: "Reachable", peerId, reachable }));
  }

  /**
   * Who was absent may have come back meanwhile, or has as long as we had to do so.
   * @param {number} now
   */
  #lookAgain(now) {
    if (!this.#lost) return;
    this.#lost = false;
    for (const [peerId, entry] of this.#roster) {
      if (!entry.present) this.#grace.set(peerId, now + this.#seatTimeout);
    }
  }

  /**
   * Somebody has a seat.
   * @param {Member} member
   * @returns {MeshOutput[]}
   */
  joined(member) {
    const { peerId, incarnation } = member;
    // Ids are unique in a room; a service that says otherwise is not believed.
    if (peerId === this.#peerId) return [];
    /** @type {MeshOutput[]} */
    const out = [];
    const entry = this.#roster.get(peerId);
    if (entry?.member.incarnation === incarnation) {
      this.#grace.clear(peerId);
      entry.present = true;
      if (!isSame(entry.member, member)) {
        entry.member = member;
        out.push({ kind: "Renamed", member });
      }
      out.push({ kind: "Reachable", peerId, reachable: true });
      return out;
    }
    if (entry) out.push(...this.#forget(peerId, entry, "superseded"));
    this.#roster.set(peerId, { member, present: true, alive: false });
    out.push({ kind: "OpenLink", member, dials: compareTexts(this.#peerId, peerId) < 0 });
    return out;
  }

  /**
   * Somebody's seat is gone.
   * @param {MemberLeft} message
   * @returns {MeshOutput[]}
   */
  left({ peerId, incarnation, reason }) {
    const entry = this.#find(peerId, incarnation);
    if (!entry) return [];
    if (reason === "timeout" && entry.alive) {
      // Only its way to the service is dead. It has a seat again as soon as that is mended.
      entry.present = false;
      this.#grace.clear(peerId);
      return [{ kind: "Reachable", peerId, reachable: false }];
    }
    return this.#forget(peerId, entry, reason);
  }

  /**
   * Somebody's name or metadata changed.
   * @param {MemberUpdated} message
   * @returns {MeshOutput[]}
   */
  updated({ peerId, incarnation, name, metadata }) {
    const entry = this.#find(peerId, incarnation);
    if (!entry) return [];
    entry.member = { kind: "Member", peerId, incarnation, name, metadata };
    return [{ kind: "Renamed", member: entry.member }];
  }

  // --- the links ---

  /**
   * A direct path to the peer is alive, or no longer is.
   * @param {string} peerId
   * @param {boolean} alive
   */
  linkAlive(peerId, alive) {
    const entry = /** @type {RosterEntry} */ (this.#roster.get(peerId));
    entry.alive = alive;
    if (alive || entry.present || this.#lost || this.#grace.get(peerId) !== null) return [];
    return this.#forget(peerId, entry, "timeout");
  }

  /**
   * The peer said goodbye over the direct path.
   * @param {string} peerId
   * @param {string} incarnation
   */
  departed(peerId, incarnation) {
    const entry = this.#find(peerId, incarnation);
    return entry ? this.#forget(peerId, entry, "left") : [];
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {MeshOutput[]} */
    const out = [];
    for (const [peerId] of this.#grace.due(now)) {
      const entry = /** @type {RosterEntry} */ (this.#roster.get(peerId));
      if (!entry.alive) out.push(...this.#forget(peerId, entry, "timeout"));
    }
    return out;
  }

  /** This node leaves: nobody is there any more. */
  close() {
    return [...this.#roster].flatMap(([peerId, entry]) => this.#forget(peerId, entry, "closed"));
  }

  /**
   * @param {string} peerId
   * @param {string} incarnation
   */
  #find(peerId, incarnation) {
    const entry = this.#roster.get(peerId);
    return entry?.member.incarnation === incarnation ? entry : null;
  }

  /**
   * @param {string} peerId
   * @param {RosterEntry} entry
   * @param {string} reason
   * @returns {MeshOutput[]}
   */
  #forget(peerId, entry, reason) {
    this.#roster.delete(peerId);
    this.#grace.clear(peerId);
    return [{ kind: "CloseLink", peerId, incarnation: entry.member.incarnation, reason }];
  }
}

/**
 * Whether two values of JSON are the same; fields may be in any order.
 * @param {unknown} one
 * @param {unknown} other
 * @returns {boolean}
 */
function isSame(one, other) {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return one === other;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const [fields, others] = [Object.entries(one), new Map(Object.entries(other))];
  return fields.length === others.size && fields.every(([name, value]) => others.has(name) && isSame(value, others.get(name)));
}
