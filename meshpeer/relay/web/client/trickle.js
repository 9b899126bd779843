// The candidates of one ICE generation, both ways, as they are found (RFC 8838).
//
// Ours wait until the description they belong to was sent. Theirs go to the connection as they
// come; each side may have MAX_CANDIDATES, those in its description included. Who does not say that
// there will be no others is taken to have said it some time after the latest (forced completion):
// without an end ICE would never report that it failed.

import { MAX_CANDIDATES, countCandidates } from "./codec.js";

/** @import { IceCandidate } from "./codec.js" */
/** @import { Operate, SendSignal } from "./link.js" */

/** The candidates of one generation. */
export class Trickle {
  /**
   * When `complete` is wanted.
   * @type {number | null}
   */
  completeAt = null;

  #epoch;
  #generation;
  #timeout;
  // Ours: whether the description was sent, what waits for it, and how many more are taken.
  #sent = false;
  /** @type {IceCandidate[]} */
  #held = [];
  #heldEnd = false;
  #room = MAX_CANDIDATES;
  // Theirs: how many came, and whether that was all.
  #theirs = 0;
  #ended = false;

  /**
   * @param {number} epoch
   * @param {number} generation
   * @param {number} timeout seconds to the forced completion
   */
  constructor(epoch, generation, timeout) {
    this.#epoch = epoch;
    this.#generation = generation;
    this.#timeout = timeout;
  }

  // --- ours ---

  /**
   * Local candidates were found. More than the other side takes are not sent.
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean}} options
   * @returns {SendSignal[]}
   */
  found(candidates, { end }) {
    if (!this.#sent) {
      this.#held.push(...candidates.slice(0, this.#room - this.#held.length));
      this.#heldEnd ||= end;
      return [];
    }
    const taken = candidates.slice(0, this.#room);
    this.#room -= taken.length;
    if (!taken.length && !end) return [];
    const body = { kind: /** @type {const} */ ("Candidates"), candidates: taken, end, generation: this.#generation };
    return [{ kind: "SendSignal", epoch: this.#epoch, body }];
  }

  /**
   * Our description was sent: what waited for it follows.
   * @param {string} sdp
   */
  sent(sdp) {
    this.#sent = true;
    this.#room = Math.max(0, this.#room - countCandidates(sdp));
    const held = this.#held;
    this.#held = [];
    return this.found(held, { end: this.#heldEnd });
  }

  // --- theirs ---

  /**
   * Whether the other side may have so many more.
   * @param {number} more
   */
  fits(more) {
    return this.#theirs + more <= MAX_CANDIDATES;
  }

  /**
   * Their description came.
   * @param {string} sdp
   * @param {number} now
   */
  described(sdp, now) {
    this.#theirs += countCandidates(sdp);
    if (!this.#ended) this.completeAt = now + this.#timeout;
  }

  /**
   * More of theirs came.
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean, now: number}} options
   */
  received(candidates, { end, now }) {
    // Messages without candidates have no limit. All but the first that ends them say nothing.
    const isNews = candidates.length > 0 || (end && !this.#ended);
    this.#theirs += candidates.length;
    this.#ended ||= end;
    if (this.#ended) this.completeAt = null;
    else if (candidates.length && this.completeAt !== null) this.completeAt = now + this.#timeout;
    return isNews ? [this.#add([...candidates], end)] : [];
  }

  /** Nothing came for a while: that was all. */
  complete() {
    this.completeAt = null;
    this.#ended = true;
    return [this.#add([], true)];
  }

  /**
   * @param {IceCandidate[]} candidates
   * @param {boolean} end
   * @returns {Operate}
   */
  #add(candidates, end) {
    const generation = this.#generation;
    return { kind: "Operate", epoch: this.#epoch, operation: { kind: "AddCandidates", candidates, end, generation } };
  }
}
