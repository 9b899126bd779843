// Named deadlines and backoff. Neither reads a clock: `now` is an argument, in seconds.

// A deadline that is served so much later than it was set for means that this page stood still:
// what came in meanwhile has not been read yet, so silence proves nothing.
export const STALL = 0.25;

/**
 * A few named points in time, and which of them comes next.
 *
 * Meant for the handful of deadlines that one object has; `next` looks at each.
 * @template {string} [Name=string]
 */
export class Deadlines {
  /** @type {Map<Name, number>} */
  #at = new Map();

  /**
   * Set or move the deadline `name`.
   * @param {Name} name
   * @param {number} at
   */
  set(name, at) {
    this.#at.set(name, at);
  }

  /**
   * Forget the deadline `name`; nothing happens when it is not set.
   * @param {Name} name
   */
  clear(name) {
    this.#at.delete(name);
  }

  /** Forget every deadline. */
  clearAll() {
    this.#at.clear();
  }

  /**
   * The time of `name`, or null when it is not set.
   * @param {Name} name
   */
  get(name) {
    return this.#at.get(name) ?? null;
  }

  /** The earliest time, or null when nothing is set. */
  next() {
    return this.#at.size ? Math.min(...this.#at.values()) : null;
  }

  /**
   * Take out and return what is due, earliest first, each with the time it was set for.
   * @param {number} now
   * @returns {[name: Name, at: number][]}
   */
  due(now) {
    const due = [...this.#at].filter(([, at]) => at <= now);
    for (const [name] of due) this.#at.delete(name);
    return due.sort(([, one], [, other]) => one - other);
  }
}

/** Waiting times that double from `first` to `maximum` seconds, with jitter. */
export class Backoff {
  /** How many there were since the beginning. */
  attempts = 0;
  #first;
  #maximum;
  #jitter;

  /**
   * @param {number} first
   * @param {number} maximum
   * @param {number} [jitter] the share of each waiting time that is random: 0 for none, 1 for "full
   *   jitter", anything between zero and the whole
   */
  constructor(first, maximum, jitter = 1) {
    this.#first = first;
    this.#maximum = maximum;
    this.#jitter = jitter;
  }

  /**
   * The next waiting time.
   * @param {number} random a number in [0, 1) from outside
   */
  next(random) {
    const whole = Math.min(this.#maximum, this.#first * 2 ** this.attempts);
    this.attempts++;
    return whole * (1 - this.#jitter * random);
  }

  /** Begin again at `first`. */
  reset() {
    this.attempts = 0;
  }
}
