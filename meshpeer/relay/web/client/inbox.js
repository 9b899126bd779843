// What has arrived and the application has yet to take, the last link of the credit; and what happens,
// for those who want to know. The same as meshpeer's inbox.py and announcer.py.

import { SlowReader } from "./codec.js";
import { Deque } from "./delivery.js";
import { ItemStream, report } from "./streams.js";

/** @import { Received } from "./delivery.js" */
/** @import { Path } from "./node.js" */
/** @import { Message, Peer } from "./peer.js" */

/**
 * A message on its way to the application; `readers` is how many have yet to take it.
 * @typedef {{peer: Peer, received: Received, path: Path, at: Date, readers: number}} Arrived
 */

/** @typedef {ItemStream<Arrived, Message>} MessageStream */

/**
 * Who reads: a stream, held weakly, or the listeners to "message" events, which take all.
 * @typedef {{put: (arrived: Arrived) => void, isEnded: boolean}} Taker
 * @typedef {{taker: () => Taker | undefined, channel: string | null}} Reader
 */

/**
 * Hands messages to their readers, and tells what all of them have taken.
 *
 * What nobody has taken counts against its sender's credit, so no peer that is there can make this
 * grow. Of those that have left at most `limit` bytes are kept in all.
 */
export class Inbox {
  #limit;
  #made;
  #givenBack;
  /** @type {Set<Reader>} */
  #readers = new Set();
  /** What came before anybody asked for it. @type {Deque<Arrived>} */
  #unclaimed = new Deque();
  /** Bytes from each. @type {Map<Peer, number>} */
  #unread = new Map();
  /** Bytes from those that have left. */
  #ofLeft = 0;
  /** Streams that nobody has any more: who stops reading without a word must not hold senders back. */
  #abandoned = new FinalizationRegistry((/** @type {{reader: Reader, waiting: Deque<Arrived>}} */ held) => {
    this.#readers.delete(held.reader);
    while (held.waiting.size) this.#release(held.waiting.shift());
  });

  /**
   * @param {number} limit
   * @param {(arrived: Arrived, data: any) => Message} made makes what readers get
   * @param {(peer: Peer, received: Received) => void} givenBack all have taken it
   */
  constructor(limit, made, givenBack) {
    this.#limit = limit;
    this.#made = made;
    this.#givenBack = givenBack;
  }

  /**
   * A stream of what nobody has asked for yet, then of everything from now on.
   * @param {string | null} channel
   * @returns {MessageStream}
   */
  reader(channel) {
    /** @type {MessageStream} */
    const stream = new ItemStream((arrived) => this.taken(arrived));
    const held = new WeakRef(stream);
    const reader = { taker: () => held.deref(), channel };
    this.#readers.add(reader);
    this.#abandoned.register(stream, { reader, waiting: stream.waiting });
    this.#hand(reader, stream);
    return stream;
  }

  /**
   * Have everything handed to `taker` from now on, and what nobody has asked for. Returns what ends
   * that: it is given what was not taken.
   * @param {Taker} taker
   * @returns {(untaken: Iterable<Arrived>) => void}
   */
  listen(taker) {
    const reader = { taker: () => taker, channel: null };
    this.#readers.add(reader);
    this.#hand(reader, taker);
    return (untaken) => {
      this.#readers.delete(reader);
      for (const arrived of untaken) if (--arrived.readers <= 0) this.#unclaimed.push(arrived);
    };
  }

  /**
   * @param {Reader} reader
   * @param {Taker} taker
   */
  #hand({ channel }, taker) {
    const unclaimed = this.#unclaimed;
    this.#unclaimed = new Deque();
    for (const arrived of unclaimed) {
      if (channel === null || channel === arrived.received.channel) {
        arrived.readers = 1;
        taker.put(arrived);
      } else {
        this.#unclaimed.push(arrived);
      }
    }
  }

  /**
   * Hand messages of one peer to everybody who reads their channels.
   * @param {Peer} peer
   * @param {Path} path
   * @param {readonly Received[]} messages
   */
  deliver(peer, path, messages) {
    if (!messages.length) return;
    const at = new Date();
    let charges = this.#unread.get(peer) ?? 0;
    /** @type {string | null} */
    let channel = null;
    /** @type {Taker[]} */
    let takers = [];
    for (const received of messages) {
      if (received.channel !== channel) {
        channel = received.channel;
        takers = this.#takersOf(channel);
      }
      charges += received.charge;
      const arrived = { peer, received, path, at, readers: takers.length };
      for (const taker of takers) taker.put(arrived);
      if (!takers.length) this.#unclaimed.push(arrived);
    }
    this.#unread.set(peer, charges);
  }

  /** @param {string} name */
  #takersOf(name) {
    /** @type {Taker[]} */
    const takers = [];
    for (const reader of this.#readers) {
      if (reader.channel !== null && reader.channel !== name) continue;
      const taker = reader.taker();
      if (taker === undefined) continue;
      if (taker.isEnded) this.#readers.delete(reader);
      else takers.push(taker);
    }
    return takers;
  }

  /**
   * Nothing more comes from this peer; what did can still be read, within the limit.
   * @param {Peer} peer
   */
  peerLeft(peer) {
    this.#ofLeft += this.#unread.get(peer) ?? 0;
    if (this.#ofLeft <= this.#limit) return;
    const unclaimed = this.#unclaimed;
    this.#unclaimed = new Deque();
    for (const arrived of unclaimed) {
      if (this.#ofLeft > this.#limit && arrived.peer.closedReason !== null) this.#settle(arrived);
      else this.#unclaimed.push(arrived);
    }
    if (this.#ofLeft <= this.#limit) return;
    const error = new SlowReader(
      `more than ${this.#limit} bytes from peers that have left were not read (config.receiveWindow); read faster`,
    );
    for (const stream of this.#streams()) if (stream.size) stream.end(error);
  }

  /**
   * The manager is closed: every reader ends after what waits.
   * @param {Error | null} error
   */
  end(error) {
    for (const stream of this.#streams()) stream.end(error);
  }

  #streams() {
    return [...this.#readers].map((reader) => reader.taker()).filter((taker) => taker instanceof ItemStream);
  }

  /**
   * One of its readers takes it.
   * @param {Arrived} arrived
   */
  taken(arrived) {
    const { received } = arrived;
    // Decoded for each reader, so that none shares its objects with another.
    let data = received.value();
    if (data === received.payload && arrived.readers > 1) data = received.payload.slice();
    const message = this.#made(arrived, data);
    this.#release(arrived);
    return message;
  }

  /** @param {Arrived} arrived */
  #release(arrived) {
    if (--arrived.readers <= 0) this.#settle(arrived);
  }

  /** @param {Arrived} arrived */
  #settle({ peer, received }) {
    const left = (this.#unread.get(peer) ?? 0) - received.charge;
    if (left) this.#unread.set(peer, left);
    else this.#unread.delete(peer);
    if (peer.closedReason !== null) this.#ofLeft -= received.charge;
    // Of one that has left as well: the same process may have come back, and go on.
    this.#givenBack(peer, received);
  }
}

/** @param {string} kind */
export const eventType = (kind) => kind.replace(/(?<!^)[A-Z]/g, "-$&").toLowerCase();

/** Tells events, and messages, to listeners and to those who iterate: at most `limit` events each. */
export class Announcer {
  #limit;
  #target;
  /** @type {Set<WeakRef<ItemStream<any>>>} */
  #watchers = new Set();
  /** What listeners are told, in order. @type {Deque<() => void>} */
  #queue = new Deque();
  #isTelling = false;
  #isEnded = false;

  /**
   * @param {number} limit
   * @param {EventTarget} target
   */
  constructor(limit, target) {
    this.#limit = limit;
    this.#target = target;
  }

  /**
   * Tell everybody, in the order of the calls.
   * @param {{kind: string}} event
   */
  tell(event) {
    for (const held of this.#watchers) {
      const stream = held.deref();
      if (stream === undefined || stream.isEnded) this.#watchers.delete(held);
      else this.#offer(stream, event);
    }
    this.later(() => this.#target.dispatchEvent(new CustomEvent(eventType(event.kind), { detail: event })));
  }

  /**
   * Call this in its turn among what listeners are told: when all that is being done now is done, so
   * that a listener may do whatever it likes.
   * @param {() => void} call
   */
  later(call) {
    this.#queue.push(call);
    if (this.#isTelling) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      while (this.#queue.size) {
        try {
          this.#queue.shift()(); // what a listener throws, dispatchEvent reports
        } catch (error) {
          report(error);
        }
      }
      this.#isTelling = false;
    });
  }

  /** There are no more events; what was told is still heard. */
  end() {
    this.#isEnded = true;
    for (const held of this.#watchers) held.deref()?.end();
    this.#watchers.clear();
  }

  /**
   * A stream of every event from now on.
   * @returns {ItemStream<any>}
   */
  events() {
    const stream = new ItemStream((event) => event);
    if (this.#isEnded) stream.end();
    else this.#watchers.add(new WeakRef(stream));
    return stream;
  }

  /**
   * @param {ItemStream<any>} stream
   * @param {{kind: string}} event
   */
  #offer(stream, event) {
    if (stream.size < this.#limit) {
      stream.put(event);
      return;
    }
    stream.end(
      new SlowReader(
        `${this.#limit} events were not read (config.maxPendingEvents); read faster, or listen to those that you need`,
      ),
    );
  }
}
