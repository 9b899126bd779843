// The ICE restarts of one connection: new credentials and candidates under the same DTLS.
//
// A Restart belongs to one epoch of a link. Like the link it is one table: an input that no row
// lists raises UnexpectedInput, or is refused with a ProtocolError when it came from the other
// side; either way nothing changes. A restart that is given up never harms the link either: what
// carries data goes on carrying it, and the link's own deadlines decide about a new connection.
//
// Each restart has a number, its generation (0 is the connection's first negotiation). Either side
// may begin one. The side that dials takes odd numbers and the other even ones, each higher than
// all that were seen or used before: so no number ever means two restarts, and whatever comes late,
// twice or after both sides began at once can be told by its number alone.

import { ProtocolError, UnexpectedInput, countCandidates } from "./codec.js";
import { Trickle } from "./trickle.js";

/** @import { Answer, Candidates, IceCandidate, Offer } from "./codec.js" */
/** @import { Operate, Refuse, SendSignal } from "./link.js" */

/**
 * How far the latest restart of a connection is.
 * - idle: none is under way
 * - offering: an offer is being made
 * - offered: the offer is sent, the answer has not come
 * - answering: an answer is being made
 * - checking: both descriptions are exchanged; ICE is at work beside what carries data
 * @typedef {"idle" | "offering" | "offered" | "answering" | "checking"} RestartState
 */

/**
 * What can happen to it.
 * @typedef {"begin"
 *   | "offer" | "answer" | "candidates"
 *   | "offer made" | "answer made" | "operation failed" | "selected"
 *   | "deadline"} RestartInput
 */

/**
 * In `state`, on `input` under `condition`: run `actions`, be in `next`.
 * @typedef {[state: RestartState, input: RestartInput, condition: string, next: RestartState,
 *   actions: string[], reason: string]} RestartRow
 */

/** @typedef {Operate | SendSignal | Refuse} RestartOutput */

/** @type {readonly RestartRow[]} */
export const RESTART_TABLE = [
  // <generated: restart-table>
  ["idle", "begin", "patient", "offering", ["offer"], "begun here"],
  ["idle", "begin", "urgent", "offering", ["offer"], "begun here"],
  ["offered", "begin", "urgent", "offering", ["offer"], "what is under way is out of date"],
  ["checking", "begin", "urgent", "offering", ["offer"], "what is under way is out of date"],
  ["offering", "begin", "urgent", "offering", ["remember"], "begun when this step is done"],
  ["answering", "begin", "urgent", "answering", ["remember"], "begun when this step is done"],
  ["offering", "begin", "patient", "offering", [], "one is under way"],
  ["offered", "begin", "patient", "offered", [], "one is under way"],
  ["answering", "begin", "patient", "answering", [], "one is under way"],
  ["checking", "begin", "patient", "checking", [], "one is under way"],
  ["idle", "offer", "dials, newer", "answering", ["answer"], "begun by the other side"],
  ["idle", "offer", "waits, newer", "answering", ["answer"], "begun by the other side"],
  ["offering", "offer", "dials, newer", "offering", ["pass"], "both began: the smaller id's wins"],
  ["offered", "offer", "dials, newer", "offered", ["pass"], "both began: the smaller id's wins"],
  ["offering", "offer", "waits, newer", "answering", ["answer"], "both began: the smaller id's wins"],
  ["offered", "offer", "waits, newer", "answering", ["answer"], "both began: the smaller id's wins"],
  ["answering", "offer", "dials, newer", "answering", ["answer"], "the other side began another"],
  ["answering", "offer", "waits, newer", "answering", ["answer"], "the other side began another"],
  ["checking", "offer", "dials, newer", "answering", ["answer"], "the other side began another"],
  ["checking", "offer", "waits, newer", "answering", ["answer"], "the other side began another"],
  ["idle", "offer", "dials, older", "idle", [], "a restart that is over"],
  ["idle", "offer", "waits, older", "idle", [], "a restart that is over"],
  ["offering", "offer", "dials, older", "offering", [], "a restart that is over"],
  ["offering", "offer", "waits, older", "offering", [], "a restart that is over"],
  ["offered", "offer", "dials, older", "offered", [], "a restart that is over"],
  ["offered", "offer", "waits, older", "offered", [], "a restart that is over"],
  ["answering", "offer", "dials, older", "answering", [], "a restart that is over"],
  ["answering", "offer", "waits, older", "answering", [], "a restart that is over"],
  ["checking", "offer", "dials, older", "checking", [], "a restart that is over"],
  ["checking", "offer", "waits, older", "checking", [], "a restart that is over"],
  ["offered", "answer", "current", "checking", ["acceptAnswer"], "answered"],
  ["checking", "answer", "current", "checking", [], "the same answer again"],
  ["idle", "answer", "older", "idle", [], "a restart that is over"],
  ["offering", "answer", "older", "offering", [], "a restart that is over"],
  ["offered", "answer", "older", "offered", [], "a restart that is over"],
  ["answering", "answer", "older", "answering", [], "a restart that is over"],
  ["checking", "answer", "older", "checking", [], "a restart that is over"],
  ["offered", "candidates", "current", "offered", ["addCandidates"], "candidates"],
  ["answering", "candidates", "current", "answering", ["addCandidates"], "candidates"],
  ["checking", "candidates", "current", "checking", ["addCandidates"], "candidates"],
  ["idle", "candidates", "carries", "idle", ["addToCarrying"], "candidates of what carries data"],
  ["offering", "candidates", "carries", "offering", ["addToCarrying"], "candidates of what carries data"],
  ["offered", "candidates", "carries", "offered", ["addToCarrying"], "candidates of what carries data"],
  ["answering", "candidates", "carries", "answering", ["addToCarrying"], "candidates of what carries data"],
  ["checking", "candidates", "carries", "checking", ["addToCarrying"], "candidates of what carries data"],
  ["idle", "candidates", "older", "idle", [], "not of a restart that is under way"],
  ["idle", "candidates", "unknown", "idle", [], "not of a restart that is under way"],
  ["offering", "candidates", "older", "offering", [], "not of a restart that is under way"],
  ["offering", "candidates", "unknown", "offering", [], "not of a restart that is under way"],
  ["offered", "candidates", "older", "offered", [], "not of a restart that is under way"],
  ["offered", "candidates", "unknown", "offered", [], "not of a restart that is under way"],
  ["answering", "candidates", "older", "answering", [], "not of a restart that is under way"],
  ["answering", "candidates", "unknown", "answering", [], "not of a restart that is under way"],
  ["checking", "candidates", "older", "checking", [], "not of a restart that is under way"],
  ["checking", "candidates", "unknown", "checking", [], "not of a restart that is under way"],
  ["offering", "offer made", "current", "offered", ["sendOffer"], "offer sent"],
  ["offering", "offer made", "again", "offering", ["offer"], "out of date before it was sent"],
  ["answering", "answer made", "current", "checking", ["sendAnswer"], "answer sent"],
  ["answering", "answer made", "again", "offering", ["sendAnswer", "offer"], "answer sent, and out of date"],
  ["answering", "answer made", "selected", "idle", ["sendAnswer"], "took over already"],
  ["idle", "offer made", "older", "idle", [], "a restart that is over"],
  ["offering", "offer made", "older", "offering", [], "a restart that is over"],
  ["offered", "offer made", "older", "offered", [], "a restart that is over"],
  ["answering", "offer made", "older", "answering", [], "a restart that is over"],
  ["checking", "offer made", "older", "checking", [], "a restart that is over"],
  ["idle", "answer made", "older", "idle", [], "a restart that is over"],
  ["offering", "answer made", "older", "offering", [], "a restart that is over"],
  ["offered", "answer made", "older", "offered", [], "a restart that is over"],
  ["answering", "answer made", "older", "answering", [], "a restart that is over"],
  ["checking", "answer made", "older", "checking", [], "a restart that is over"],
  ["idle", "operation failed", "older", "idle", [], "a restart that is over"],
  ["offering", "operation failed", "older", "offering", [], "a restart that is over"],
  ["offered", "operation failed", "older", "offered", [], "a restart that is over"],
  ["answering", "operation failed", "older", "answering", [], "a restart that is over"],
  ["checking", "operation failed", "older", "checking", [], "a restart that is over"],
  ["offered", "selected", "current", "idle", ["carry"], "took over"],
  ["checking", "selected", "current", "idle", ["carry"], "took over"],
  ["answering", "selected", "current", "answering", ["carry"], "took over before the answer left"],
  ["idle", "selected", "older", "idle", ["carry"], "an earlier generation carries data"],
  ["offering", "selected", "older", "offering", ["carry"], "an earlier generation carries data"],
  ["offered", "selected", "older", "offered", ["carry"], "an earlier generation carries data"],
  ["answering", "selected", "older", "answering", ["carry"], "an earlier generation carries data"],
  ["checking", "selected", "older", "checking", ["carry"], "an earlier generation carries data"],
  ["offering", "operation failed", "current", "idle", [], "given up: it failed"],
  ["offered", "operation failed", "current", "idle", [], "given up: it failed"],
  ["answering", "operation failed", "current", "idle", [], "given up: it failed"],
  ["checking", "operation failed", "current", "idle", [], "given up: it failed"],
  ["offering", "deadline", "current", "idle", [], "given up: no offer was made"],
  ["offered", "deadline", "current", "idle", [], "given up: it was not answered"],
  ["answering", "deadline", "current", "idle", [], "given up: no answer was made"],
  ["checking", "deadline", "current", "idle", [], "given up: it found no path"],
  ["offering", "operation failed", "again", "offering", ["offer"], "given up, and begun anew"],
  ["answering", "operation failed", "again", "offering", ["offer"], "given up, and begun anew"],
  ["offering", "deadline", "again", "offering", ["offer"], "given up, and begun anew"],
  ["answering", "deadline", "again", "offering", ["offer"], "given up, and begun anew"],
  // </generated>
];
const RESTART_ROWS = new Map(RESTART_TABLE.map((row) => [`${row[0]}, ${row[1]}, ${row[2]}`, row]));

/** @type {ReadonlySet<RestartInput>} */
const RESTART_FROM_PEER = new Set(["offer", "answer", "candidates"]);
// What may find that another restart was asked for meanwhile.
/** @type {ReadonlySet<RestartInput>} */
const RESTART_DONE = new Set(["offer made", "answer made", "operation failed", "deadline"]);
// Half of what the schema takes: the other side can't bring us beyond what we may use ourselves.
const MAX_REMOTE_GENERATION = 2 ** 30;

/** The restarts of the connection of one epoch. See the top of this part for how it works. */
export class Restart {
  /** @type {RestartState} */
  state = "idle";
  /** The number of the restart that is under way, or was the last. */
  generation = 0;
  /** The generation that carries data. */
  carrying = 0;
  /** What the latest restart was begun for. */
  reason = "";
  /** Why one was given up, until the link has read it. */
  givenUp = "";

  #config;
  #epoch;
  #dials;
  #mayBegin;
  /** @type {number | null} */
  #deadline = null;
  // The highest number that was seen or used, that was agreed on, and that they offered.
  #seen = 0;
  #agreed = 0;
  #theirs = 0;
  /** @type {string | null} */
  #remembered = null;
  /** @type {Trickle | null} */
  #current = null;
  /** @type {Trickle | null} */
  #carrying = null;
  /** @type {unknown} */
  #arg = null;
  /** @type {RestartOutput[]} */
  #out = [];

  /**
   * @param {{connectTimeout: number, restartTimeout: number, candidatesTimeout: number}} config
   * @param {object} options
   * @param {number} options.epoch
   * @param {boolean} options.dials  this side has the smaller id
   * @param {(now: number) => boolean} options.mayBegin  whether the other side may make us begin
   *   something now; asked for each of its offers that would
   */
  constructor(config, { epoch, dials, mayBegin }) {
    this.#config = config;
    this.#epoch = epoch;
    this.#dials = dials;
    this.#mayBegin = mayBegin;
  }

  // --- what the link reads ---

  /** When `tick` is wanted next. */
  nextDeadline() {
    return earliest(this.#deadline, this.#current?.completeAt, this.#carrying?.completeAt);
  }

  // --- inputs ---

  /**
   * Begin one. Urgent: even if one is under way, which is then out of date.
   * @param {string} reason
   * @param {number} now
   * @param {{urgent: boolean}} options
   */
  begin(reason, now, { urgent }) {
    return this.#feed("begin", urgent ? "urgent" : "patient", now, reason);
  }

  /**
   * A signal with a generation above 0 arrived for this epoch.
   * @param {Offer | Answer | Candidates} message
   * @param {number} now
   * @returns {RestartOutput[]}
   */
  message(message, now) {
    const number = message.generation;
    let text = null;
    if (number > MAX_REMOTE_GENERATION) {
      text = `generation ${number} is beyond ${MAX_REMOTE_GENERATION}`;
    } else if (message.kind === "Offer" && this.#isOurs(number)) {
      const kind = this.#dials ? "odd" : "even";
      text = `generation ${number} is not the other side's to offer: ${kind} ones are ours`;
    }
    if (text !== null) {
      const error = new ProtocolError(text, { code: "bad_generation", field: "$.generation" });
      return [{ kind: "Refuse", error }];
    }
    let which = this.#which(number);
    switch (message.kind) {
      case "Offer": {
        const age = number > Math.max(this.#agreed, this.#theirs) ? "newer" : "older";
        return this.#feed("offer", `${this.#dials ? "dials" : "waits"}, ${age}`, now, message);
      }
      case "Answer":
        return this.#feed("answer", which, now, message);
      case "Candidates":
        if (which === "older" && number === this.carrying) which = "carries";
        return this.#feed("candidates", which, now, message);
    }
  }

  /**
   * `MakeOffer` is done.
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  offerMade(generation, sdp, now) {
    return this.#feed("offer made", this.#told(generation, "offer made"), now, sdp);
  }

  /**
   * `AcceptOffer` is done.
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  answerMade(generation, sdp, now) {
    let condition = this.#told(generation, "answer made");
    if (condition === "current" && this.carrying === generation) condition = "selected";
    return this.#feed("answer made", condition, now, sdp);
  }

  /**
   * An operation for it, other than adding candidates, did not succeed.
   * @param {number} generation
   * @param {number} now
   */
  operationFailed(generation, now) {
    return this.#feed("operation failed", this.#told(generation, "operation failed"), now, null);
  }

  /**
   * Data goes over a pair of this generation.
   * @param {number} generation
   * @param {number} now
   */
  selected(generation, now) {
    return this.#feed("selected", this.#told(generation, "selected"), now, generation);
  }

  /**
   * Local candidates were found for a generation; those of one that is over are dropped.
   * @param {number} generation
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean}} options
   * @returns {RestartOutput[]}
   */
  localCandidates(generation, candidates, { end }) {
    let trickle = null;
    if (this.#told(generation, "candidates") === "current") trickle = this.#current;
    else if (generation === this.carrying) trickle = this.#carrying;
    return trickle === null ? [] : trickle.found(candidates, { end });
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {RestartOutput[]} */
    const out = [];
    for (const trickle of [this.#current, this.#carrying]) {
      if (trickle !== null && isDue(trickle.completeAt, now)) out.push(...trickle.complete());
    }
    if (isDue(this.#deadline, now)) {
      out.push(...this.#feed("deadline", this.#told(this.generation, "deadline"), now, null));
    }
    return out;
  }

  // --- the machine ---

  /** @param {number} number */
  #isOurs(number) {
    return (number % 2 === 1) === this.#dials;
  }

  /** @param {number} number */
  #which(number) {
    if (this.state !== "idle" && number === this.generation) return "current";
    return number <= this.#seen ? "older" : "unknown";
  }

  /**
   * @param {number} generation
   * @param {RestartInput} on
   */
  #told(generation, on) {
    const which = this.#which(generation);
    if (which === "unknown") {
      throw new UnexpectedInput(`generation ${generation} of epoch ${this.#epoch} has not begun`);
    }
    const again = which === "current" && RESTART_DONE.has(on) && this.#remembered !== null;
    return again ? "again" : which;
  }

  /**
   * @param {RestartInput} on
   * @param {string} condition
   * @param {number} now
   * @param {string | number | Offer | Answer | Candidates | null} arg
   * @returns {RestartOutput[]}
   */
  #feed(on, condition, now, arg) {
    const row = RESTART_ROWS.get(`${this.state}, ${on}, ${condition}`);
    if (row === undefined) {
      const text = `${on} (${condition}) of an ICE restart is not expected when it is ${this.state}`;
      if (!RESTART_FROM_PEER.has(on)) throw new UnexpectedInput(text);
      const error = new ProtocolError(text, { code: `unexpected_${on}`, field: "$.generation" });
      return [{ kind: "Refuse", error }];
    }
    const [, , , next, actions, reason] = row;
    if (RESTART_FROM_PEER.has(on)) {
      const message = /** @type {Offer | Answer | Candidates} */ (arg);
      const error = this.#refused(on, actions, message, now);
      if (error !== null) return [{ kind: "Refuse", error }];
    }
    this.#arg = arg;
    this.#out = [];
    for (const action of actions) Restart.#ACTIONS[action](this, now);
    if ((on === "operation failed" || on === "deadline") && condition !== "older") {
      this.givenUp = reason;
    }
    this.#setState(next, actions, now);
    const out = this.#out;
    this.#out = [];
    this.#arg = null;
    return out;
  }

  /**
   * @param {RestartState} next
   * @param {string[]} actions
   * @param {number} now
   */
  #setState(next, actions, now) {
    const changed = this.state !== next;
    this.state = next;
    // Each restart that begins, and each that gets an answer, has a deadline of its own.
    switch (next) {
      case "idle":
        this.#deadline = null;
        if (changed) this.#current = null;
        break;
      case "offering":
        if (actions.includes("offer")) this.#deadline = now + this.#config.restartTimeout;
        break;
      case "offered":
        if (changed) this.#deadline = now + this.#config.restartTimeout;
        break;
      case "answering":
        if (actions.includes("answer")) this.#deadline = now + this.#config.connectTimeout;
        break;
      case "checking":
        if (changed) this.#deadline = now + this.#config.connectTimeout;
        break;
    }
  }

  /**
   * Why a message that has its row is refused all the same.
   * @param {RestartInput} on
   * @param {string[]} actions
   * @param {Offer | Answer | Candidates} message
   * @param {number} now
   */
  #refused(on, actions, message, now) {
    let fits = true;
    switch (message.kind) {
      case "Offer":
        if (actions.includes("answer") && !this.#mayBegin(now)) {
          return new ProtocolError("offer would begin another ICE restart, after too many: one a second is taken", {
            code: "too_many_attempts",
            field: "$.type",
          });
        }
        break;
      case "Answer":
        if (actions.includes("acceptAnswer")) fits = this.#trickle.fits(countCandidates(message.sdp));
        break;
      case "Candidates":
        if (actions.includes("addCandidates")) fits = this.#trickle.fits(message.candidates.length);
        else if (actions.length) fits = this.#carrying?.fits(message.candidates.length) ?? true;
        break;
    }
    if (fits) return null;
    return new ProtocolError(`${on} would bring the ICE restart to too many candidates`, {
      code: "too_many_candidates",
      field: "$",
    });
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Restart, now: number) => void>} */
  static #ACTIONS = {
    offer: (it) => it.#offer(),
    remember: (it) => (it.#remembered = it.#text),
    pass: (it) => it.#pass(),
    answer: (it, now) => it.#answer(now),
    sendOffer: (it) => it.#sendOffer(),
    sendAnswer: (it) => it.#sendAnswer(),
    acceptAnswer: (it, now) => it.#acceptAnswer(now),
    addCandidates: (it, now) => it.#add(it.#trickle, now),
    addToCarrying: (it, now) => it.#add(it.#carrying, now),
    carry: (it) => it.#carry(),
  };

  /**
   * @param {number} generation
   * @param {string} reason
   */
  #begin(generation, reason) {
    this.generation = generation;
    this.reason = reason;
    this.#seen = Math.max(this.#seen, generation);
    this.#remembered = null;
    this.#current = new Trickle(this.#epoch, generation, this.#config.candidatesTimeout);
    return this.#current;
  }

  #offer() {
    let number = this.#seen + 1;
    if (!this.#isOurs(number)) number += 1;
    this.#begin(number, this.#remembered ?? this.#text);
    this.#operate({ kind: "MakeOffer", generation: number });
  }

  #pass() {
    this.#theirs = /** @type {Offer} */ (this.#arg).generation;
    this.#seen = Math.max(this.#seen, this.#theirs);
  }

  /** @param {number} now */
  #answer(now) {
    this.#pass();
    const { sdp, generation } = /** @type {Offer} */ (this.#arg);
    this.#begin(generation, "the other side began it").described(sdp, now);
    this.#operate({ kind: "AcceptOffer", sdp, generation });
  }

  #sendOffer() {
    const sdp = this.#text;
    this.#send({ kind: "Offer", sdp, generation: this.generation });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  #sendAnswer() {
    const sdp = this.#text;
    this.#agreed = this.generation;
    this.#send({ kind: "Answer", sdp, generation: this.generation });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  /** @param {number} now */
  #acceptAnswer(now) {
    const { sdp } = /** @type {Answer} */ (this.#arg);
    this.#agreed = this.generation;
    this.#trickle.described(sdp, now);
    this.#operate({ kind: "AcceptAnswer", sdp, generation: this.generation });
  }

  /**
   * @param {Trickle | null} trickle
   * @param {number} now
   */
  #add(trickle, now) {
    const { candidates, end } = /** @type {Candidates} */ (this.#arg);
    if (trickle !== null) this.#out.push(...trickle.received(candidates, { end, now }));
  }

  #carry() {
    const generation = /** @type {number} */ (this.#arg);
    if (generation === this.carrying) return;
    const current = generation === this.generation && this.state !== "idle";
    this.#carrying = current ? this.#current : null;
    this.carrying = generation;
  }

  /** @param {Operate["operation"]} operation */
  #operate(operation) {
    this.#out.push({ kind: "Operate", epoch: this.#epoch, operation });
  }

  /** @param {SendSignal["body"]} body */
  #send(body) {
    this.#out.push({ kind: "SendSignal", epoch: this.#epoch, body });
  }

  /** Of the restart that is under way: who asks for it knows that one is. */
  get #trickle() {
    return /** @type {Trickle} */ (this.#current);
  }

  /** A reason or a session description, where the row is for an input that has one. */
  get #text() {
    return /** @type {string} */ (this.#arg);
  }
}

/**
 * The earliest of these times, or null when there is none.
 * @param {...(number | null | undefined)} times
 */
export function earliest(...times) {
  const set = times.filter((at) => at !== null && at !== undefined);
  return set.length ? Math.min(.../** @type {number[]} */ (set)) : null;
}

/**
 * Whether a time is set and has come.
 * @param {number | null} at
 * @param {number} now
 */
export function isDue(at, now) {
  return at !== null && at <= now;
}
