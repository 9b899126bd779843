// Which links the signalling service is told about, and when.
//
// All of them after each welcome, as it may know nothing. Then each that has changed, soon after it
// did and together with others; and at the interval that the service asks for, those whose figures
// are others than it was told. A link that ended is told once more.

import { earliest } from "./restart.js";

/** @import { LinkReport } from "./codec.js" */

/** Seconds from a change until it is told: what follows from it is told with it. */
export const REPORT_DELAY = 0.2;
// Of links that ended and were not told of. While the service is away nobody comes, so there are no
// more than members of the room; this holds whatever it does.
const MAX_ENDED_LINKS = 1000;

/** What of one node's links is to be told. Nothing is, until it is `wanted`. */
export class Reports {
  #interval = 0;
  #away = true;
  /** @type {Map<string, LinkReport>} */
  #told = new Map();
  /** By `incarnationKey`. @type {Map<string, LinkReport>} */
  #ended = new Map();
  /** @type {Set<string>} */
  #changed = new Set();
  #all = false;
  /** @type {number | null} */
  #soonAt = null;
  /** @type {number | null} */
  #dueAt = null;

  // --- inputs ---

  /**
   * The service is there, and wants reports at least so often (seconds); 0: none.
   * @param {number} interval
   * @param {number} now
   */
  wanted(interval, now) {
    this.lost();
    this.#interval = interval;
    if (interval <= 0) {
      this.#ended.clear();
      return;
    }
    this.#away = false;
    this.#all = true;
    this.#soonAt = now + REPORT_DELAY;
    this.#dueAt = now + interval;
  }

  /** The service can't be reached. */
  lost() {
    this.#away = true;
    this.#told.clear();
    this.#soonAt = this.#dueAt = null;
  }

  /**
   * Something happened to the link with this peer. Costs little, whatever it was.
   * @param {string} peerId
   * @param {number} now
   */
  changed(peerId, now) {
    if (this.#away) return;
    this.#changed.add(peerId);
    this.#soonAt ??= now + REPORT_DELAY;
  }

  /**
   * This peer has a seat again: what was told of the link with it while it had none, or had lost it,
   * the service may not know.
   * @param {string} peerId
   * @param {number} now
   */
  unknown(peerId, now) {
    this.#told.delete(peerId);
    this.changed(peerId, now);
  }

  /**
   * A link is over.
   * @param {LinkReport} last told instead of it
   * @param {number} now
   */
  ended(last, now) {
    this.#told.delete(last.peerId);
    this.#changed.delete(last.peerId);
    if (this.#interval <= 0) return;
    this.#ended.set(incarnationKey(last), last);
    if (this.#ended.size > MAX_ENDED_LINKS) {
      const [oldest] = this.#ended.keys();
      this.#ended.delete(oldest);
    }
    if (!this.#away) this.#soonAt ??= now + REPORT_DELAY;
  }

  /** When `due` is wanted next. */
  nextDeadline() {
    return earliest(this.#soonAt, this.#dueAt);
  }

  // --- what is to be told ---

  /**
   * What is to be told now, each incarnation once.
   * @param {number} now
   * @param {{has: (peerId: string) => boolean, keys: () => Iterable<string>}} peers who is there
   * @param {(peerId: string) => LinkReport} report makes one's
   */
  due(now, peers, report) {
    const at = this.nextDeadline();
    if (at === null || at > now) return [];
    const figures = this.#all || (this.#dueAt !== null && this.#dueAt <= now);
    /** @type {LinkReport[]} */
    const out = [];
    for (const last of this.#ended.values()) {
      const { peerId, incarnation } = last;
      // Who is back counts on.
      if (peers.has(peerId) && report(peerId).incarnation === incarnation) this.#changed.add(peerId);
      else out.push(last);
    }
    for (const peerId of figures ? peers.keys() : this.#changed) {
      if (!peers.has(peerId)) continue; // it has left since
      const before = this.#told.get(peerId);
      const link = report(peerId);
      if (before && isSameReport(link, before, figures)) continue;
      this.#told.set(peerId, link);
      out.push(link);
    }
    this.#ended.clear();
    this.#changed.clear();
    this.#all = false;
    this.#soonAt = null;
    if (figures) this.#dueAt = now + this.#interval;
    return out;
  }
}

/** @param {LinkReport} link */
const incarnationKey = ({ peerId, incarnation }) => `${incarnation} ${peerId}`;

// Figures that change while all is well: not worth telling soon.
const FIGURES = new Set(["rtt", "connectTime", "messages", "bytesSent", "bytesReceived"]);

/**
 * Whether both say the same. Without `figures` only what is worth telling soon counts, of the round
 * trip whether there is one.
 * @param {LinkReport} one
 * @param {LinkReport} other
 * @param {boolean} figures
 */
function isSameReport(one, other, figures) {
  const names = /** @type {(keyof LinkReport)[]} */ (Object.keys(one));
  if (names.some((name) => one[name] !== other[name] && (figures || !FIGURES.has(name)))) return false;
  return figures || (one.rtt === null) === (other.rtt === null);
}
