// What waits and wakes: a bell, deadlines with an AbortSignal, async iterators that are fed, turns of
// the event loop. The same as meshpeer's streams.py and alarm.py.

import { Deque } from "./delivery.js";

/**
 * Tell the page of an error that nobody else is told: its `error` event, and the console.
 * @param {unknown} error
 */
export function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

/** Wakes everybody who waits. Who waits looks himself what has changed. */
export class Bell {
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /** Wake all that wait now. */
  ring() {
    if (!this.#waiting.size) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  /**
   * Wait for the next `ring`; throws the reason of `signal` when that is aborted first.
   * @param {AbortSignal | null} [signal]
   * @returns {Promise<void>}
   */
  wait(signal = null) {
    return new Promise((resolve, reject) => {
      if (signal === null) {
        this.#waiting.add(resolve);
        return;
      }
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      const wake = () => {
        signal.removeEventListener("abort", abort);
        resolve();
      };
      const abort = () => {
        this.#waiting.delete(wake);
        reject(signal.reason);
      };
      signal.addEventListener("abort", abort, { once: true });
      this.#waiting.add(wake);
    });
  }
}

/**
 * What `promise` gives, or the reason of `signal`, whichever is first.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal | null} signal
 * @returns {Promise<T>}
 */
export function abortable(promise, signal) {
  if (signal === null) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Milliseconds of the longest timer there is: setTimeout takes a longer one for none at all. */
const MAX_TIMER = 2 ** 31 - 1;

/**
 * Calls `ring` after so many seconds, unless what it returns is called before.
 * @param {number} seconds
 * @param {() => void} ring
 * @returns {() => void}
 */
export function after(seconds, ring) {
  const timer = setTimeout(ring, Math.min(Math.max(0, Math.ceil(seconds * 1000)), MAX_TIMER));
  return () => clearTimeout(timer);
}

/**
 * Do something that may be given up: `body` is given one AbortSignal (or null) for the deadline and
 * for the caller's own `signal`, and what it is aborted with is thrown.
 * @template T
 * @param {{timeout?: number | null, signal?: AbortSignal | null, late?: () => Error}} options
 *   `timeout` in seconds, null for no limit; `late` makes the error for it
 * @param {(signal: AbortSignal | null) => Promise<T>} body
 * @returns {Promise<T>}
 */
export async function scoped({ timeout = null, signal = null, late = () => new Error("late") }, body) {
  signal?.throwIfAborted();
  if (timeout === null) return body(signal);
  const inner = new AbortController();
  const abort = () => inner.abort(signal?.reason);
  signal?.addEventListener("abort", abort, { once: true });
  const disarm = after(timeout, () => inner.abort(late()));
  try {
    return await body(inner.signal);
  } finally {
    disarm();
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Turns of the event loop. Unlike timers they are not held back, by four milliseconds or in a tab in
 * the background by seconds.
 */
export class Turns {
  /** @type {MessageChannel | null} */
  #channel = null;
  /** @type {Deque<() => void>} */
  #callbacks = new Deque();

  /**
   * Call this in a turn of its own, after what has happened by now has been dealt with.
   * @param {() => void} callback
   */
  after(callback) {
    if (this.#channel === null) {
      this.#channel = new MessageChannel();
      this.#channel.port1.onmessage = () => {
        if (this.#callbacks.size) this.#callbacks.shift()();
        if (!this.#callbacks.size) this.#close(); // or a process that is no page would go on for ever
      };
    }
    this.#callbacks.push(callback);
    this.#channel.port2.postMessage(null);
  }

  /** @returns {Promise<void>} */
  next() {
    return new Promise((resolve) => this.after(resolve));
  }

  #close() {
    this.#channel?.port1.close();
    this.#channel = null;
  }
}

/** A timer is late by so many seconds when the page was frozen, or had too much to do. */
const LATE_ALARM = 1.5;
/** Seconds that what has arrived meanwhile is then given to be heard first. */
const ALARM_GRACE = 0.05;

/**
 * Calls `ring` at the time it was last set to, in seconds of `now`.
 *
 * It may ring early by the clock's resolution; the core then does nothing, and asks again. Where it
 * would ring much too late, it lets what arrived meanwhile be heard before: a page that was frozen
 * takes nobody for silent whom it has not listened to.
 */
export class Alarm {
  /** @type {number | null} */
  #at = null;
  /** @type {(() => void) | null} */
  #disarm = null;
  #isGraced = false;
  #now;
  #ring;
  #turns;

  /**
   * @param {() => number} now
   * @param {Turns} turns
   * @param {() => void} ring
   */
  constructor(now, turns, ring) {
    this.#now = now;
    this.#turns = turns;
    this.#ring = ring;
  }

  /**
   * @param {number | null} at null is never
   */
  set(at) {
    if (at === this.#at) return;
    this.#at = at;
    if (this.#isGraced) return; // it rings soon
    this.#disarm?.();
    this.#disarm = at === null ? null : after(at - this.#now(), () => this.#due());
  }

  /** Ring now if it is time, without waiting for a timer that may be held back. */
  look() {
    if (this.#at !== null && this.#at <= this.#now()) this.#due();
  }

  #due() {
    this.#disarm?.();
    this.#disarm = null;
    if (this.#isGraced || this.#at === null) return;
    const now = this.#now();
    if (now - this.#at < LATE_ALARM) {
      this.#at = null;
      this.#ring();
      return;
    }
    this.#isGraced = true;
    const hop = () => {
      if (this.#now() < now + ALARM_GRACE) {
        this.#turns.after(hop);
        return;
      }
      this.#isGraced = false;
      if (this.#at === null) return;
      this.#at = null;
      this.#ring();
    };
    this.#turns.after(hop);
  }
}

/**
 * Streams that somebody waits for. They are held here: what waits is held by nothing but the stream,
 * which others may hold weakly.
 * @type {Set<ItemStream<any, any>>}
 */
const streamsWaitedFor = new Set();

/**
 * What `PeerManager.messages`, `PeerManager.events` and `Channel` iterate over.
 *
 * Every item that was put in since the stream was made comes out once, in order. The bound is kept by
 * who feeds it: `taken(item)` is called for each item that leaves, and makes of it what the reader
 * gets.
 * @template Item
 * @template [Value=Item]
 */
export class ItemStream {
  /**
   * Shared with who feeds it, who may outlive it.
   * @type {Deque<Item>}
   */
  waiting = new Deque();
  #taken;
  #bell = new Bell();
  #isEnded = false;
  /** @type {Error | null} */
  #error = null;
  #readers = 0;

  /** @param {(item: Item) => Value} taken */
  constructor(taken) {
    this.#taken = taken;
  }

  /** How many items wait. */
  get size() {
    return this.waiting.size;
  }

  /** Whether there will be no more items than those that wait. */
  get isEnded() {
    return this.#isEnded;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** @returns {Promise<IteratorResult<Value, undefined>>} */
  async next() {
    while (!this.waiting.size) {
      if (this.#error !== null) throw this.#error;
      if (this.#isEnded) return { done: true, value: undefined };
      this.#readers++;
      streamsWaitedFor.add(this);
      try {
        await this.#bell.wait();
      } finally {
        if (!--this.#readers) streamsWaitedFor.delete(this);
      }
    }
    return { done: false, value: this.take() };
  }

  /**
   * Stop: nothing more is collected for this iterator, and what waits is dropped.
   * @returns {Promise<IteratorResult<Value, undefined>>}
   */
  async return() {
    this.end();
    this.#error = null;
    while (this.waiting.size) this.take();
    return { done: true, value: undefined };
  }

  /** Take the next item out, which must be there. */
  take() {
    return this.#taken(this.waiting.shift());
  }

  /**
   * Add an item. Not to be called after the end.
   * @param {Item} item
   */
  put(item) {
    this.waiting.push(item);
    this.#bell.ring();
  }

  /**
   * No more items: iteration stops, or throws `error`, after those that wait.
   * @param {Error | null} [error]
   */
  end(error = null) {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#error = error;
    this.#bell.ring();
  }
}
