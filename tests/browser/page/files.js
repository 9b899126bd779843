// Repeats the walks of tests/browser/filewalks.py with files.js, and says where something else comes
// of them.

const CONTENT = 120; // "x"
const CHUNK = 4;

/** @param {number} size */
const contentOf = (size) => new Uint8Array(size).fill(CONTENT);

/** @param {readonly Uint8Array[]} pieces */
function joined(pieces) {
  return Uint8Array.from(pieces.flatMap((piece) => [...piece]));
}

const channel = new MessageChannel();

/** Resolves in a later turn of the event loop, when what has happened by now has been dealt with. */
export const turn = () =>
  new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });

/**
 * What `promise` comes to, or the reason of `signal`.
 * @param {Promise<any>} promise
 * @param {AbortSignal} signal
 */
function abortable(promise, signal) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
    promise.then(resolve, reject);
  });
}

/**
 * A Blob that is read without leaving the event loop's turn.
 * @param {Uint8Array} data
 * @param {string} [name]
 * @returns {any}
 */
const blobOf = (data, name) => ({
  [Symbol.toStringTag]: "File",
  name,
  size: data.length,
  slice: (/** @type {number} */ from, /** @type {number} */ to) => blobOf(data.slice(from, to)),
  arrayBuffer: async () => data.slice().buffer,
});

/** @param {any} error */
function ofError(error) {
  if (error.name === "AbortError") return ["cancelled"];
  const text = error.message.replace(/(malformed message about a file): .*/s, "$1");
  return [error.name, error.code ?? null, text];
}

class LookupError extends Error {
  name = "LookupError";
}

/** What both kinds have in common. */
class Walk {
  /** @type {any[]} */
  log = [];
  /** @type {AbortController[]} */
  tasks = [];
  /** @type {Map<string, any>} */
  peers = new Map();

  /** @param {any} client */
  constructor(client) {
    this.client = client;
    this.files = new client.Files({ chunk: CHUNK });
    for (const id of ["ann", "bob"]) this.joined(id, "first");
  }

  /**
   * @param {string} id
   * @param {string} incarnation
   */
  joined(id, incarnation) {
    const peer = { id, incarnation, closedReason: null };
    this.peers.set(id, peer);
    this.files.peerJoined(peer);
  }

  /**
   * @param {(signal: AbortSignal) => Promise<any>} work
   * @param {(result: any) => any[]} told
   */
  begin(work, told) {
    const number = this.tasks.length;
    const task = new AbortController();
    this.tasks.push(task);
    work(task.signal).then(
      (result) => this.log.push(["ended", number, ...told(result)]),
      (error) => this.log.push(["ended", number, ...ofError(error)]),
    );
  }

  /** @param {any[]} operation */
  async step([method, ...given]) {
    try {
      /** @type {any} */ (this)[method](...given);
    } catch (error) {
      this.log.push(["raised", ...ofError(error)]);
    }
    for (let n = 0; n < 4; n++) await turn();
    return this.log.splice(0).sort(byText);
  }

  /** @param {number} number */
  cancel(number) {
    this.tasks[number].abort();
  }

  end() {
    this.files.end(new this.client.IdentityReplaced("a newer process has the peer id"));
  }

  close() {
    this.begin(
      () => this.files.close(),
      () => [],
    );
  }
}

class Receiving extends Walk {
  /** What is kept of each file, and by whom it is written to. @type {Map<string, {busy: boolean, pieces: Uint8Array[]}[]>} */
  #kept = new Map();
  #asked = 0;

  /**
   * @param {string} id
   * @param {any} data
   */
  request(id, data) {
    const number = this.#asked++;
    this.files.request(this.peers.get(id), data, {
      reply: (/** @type {any} */ data) => this.log.push(["answer", number, "reply", data]),
      error: (/** @type {string} */ text) => this.log.push(["answer", number, "error", text]),
    });
  }

  /**
   * @param {string} id
   * @param {number} size
   */
  data(id, size) {
    this.files.data(this.peers.get(id), contentOf(size), () => this.log.push(["taken", size]));
  }

  /** @param {string} id */
  left(id) {
    const peer = this.peers.get(id);
    this.peers.delete(id);
    peer.closedReason = "left";
    this.files.peerLeft(peer);
  }

  /**
   * @param {string | null} sender
   * @param {boolean} breaks
   */
  receive(sender, breaks) {
    const onProgress = () => {
      if (breaks) throw new LookupError("mine");
    };
    let stored = 0;
    const sink = (/** @type {any} */ offer) => this.#sink(offer, (size) => (stored = size));
    this.begin(
      (signal) => this.files.receive({ sender, onProgress, sink, signal }),
      (r) => [r.name, r.size, r.sha256, r.sender.id, r.resumedFrom, stored],
    );
  }

  /**
   * As a directory does it.
   * @param {any} offer
   * @param {(size: number) => void} publish
   */
  #sink({ name, sha256 }, publish) {
    const slots = this.#slots(name, sha256);
    let slot = slots.find((each) => !each.busy);
    if (!slot) slots.push((slot = { busy: false, pieces: [] }));
    const mine = slot;
    mine.busy = true;
    const leave = () => (mine.busy = false);
    return {
      begin: () => blobOf(joined(mine.pieces)),
      write: (/** @type {Uint8Array} */ bytes) => mine.pieces.push(bytes),
      empty: () => (mine.pieces = []),
      close: () => {
        publish(joined(mine.pieces).length);
        mine.pieces = [];
        leave();
      },
      abort: leave,
    };
  }

  /**
   * @param {string} name
   * @param {string} sha256
   */
  #slots(name, sha256) {
    const key = `${sha256} ${name}`;
    const slots = this.#kept.get(key) ?? [];
    this.#kept.set(key, slots);
    return slots;
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {string} content
   */
  spoil(name, size, content) {
    const sum = new this.client.Sha256();
    sum.update(contentOf(size));
    this.#slots(name, sum.hex)[0] = { busy: false, pieces: [new TextEncoder().encode(content)] };
  }
}

class Sending extends Walk {
  #asked = 0;
  /** @type {Map<number, {id: string, resolve: (value: any) => void, reject: (error: any) => void}>} */
  #pending = new Map();
  /** @type {Set<string>} */
  #gone = new Set();
  /** Who waits for its turn to send, by peer; null while nobody has to. @type {Map<string, (() => void)[] | null>} */
  #blocked = new Map();

  /** @param {string} id */
  #check(id) {
    if (this.#gone.has(id)) throw new this.client.PeerClosed("the peer is gone", { reason: "left" });
  }

  /** @param {string} id */
  #wire(id) {
    return {
      request: async (/** @type {any} */ data, /** @type {{signal: AbortSignal}} */ { signal }) => {
        signal.throwIfAborted();
        this.#check(id);
        const number = this.#asked++;
        this.log.push(["request", id, number, data]);
        const answer = new Promise((resolve, reject) => this.#pending.set(number, { id, resolve, reject }));
        return await abortable(answer, signal).finally(() => this.#pending.delete(number));
      },
      send: async (/** @type {Uint8Array} */ data, /** @type {{signal: AbortSignal}} */ { signal }) => {
        signal.throwIfAborted();
        this.#check(id);
        const waiting = this.#blocked.get(id);
        if (waiting) {
          const unblocked = new Promise((resume) => waiting.push(() => resume(null)));
          await abortable(unblocked, signal);
        }
        this.#check(id);
        if (data.some((byte) => byte !== CONTENT)) throw new Error("it sends what is not in the file");
        this.log.push(["bytes", id, data.length]);
      },
    };
  }

  /**
   * @param {string} id
   * @param {string} name
   * @param {number} size
   * @param {boolean} breaks
   */
  send(id, name, size, breaks) {
    let last = -1;
    const onProgress = (/** @type {any} */ progress) => {
      last = progress.done;
      if (breaks) throw new LookupError("mine");
    };
    const blob = blobOf(contentOf(size), "not this");
    this.begin(
      (signal) => this.files.send(this.peers.get(id), this.#wire(id), blob, { name, onProgress, signal }),
      (sent) => [sent.name, sent.size, sent.sha256, sent.resumedFrom, last],
    );
  }

  /**
   * @param {number} number
   * @param {any} data
   */
  reply(number, data) {
    this.#pending.get(number)?.resolve(data);
  }

  /**
   * @param {number} number
   * @param {string} text
   */
  fail(number, text) {
    this.#pending.get(number)?.reject(new this.client.RequestFailed(text));
  }

  /** @param {string} id */
  block(id) {
    if (!this.#blocked.get(id)) this.#blocked.set(id, []);
  }

  /** @param {string} id */
  unblock(id) {
    const waiting = this.#blocked.get(id) ?? [];
    this.#blocked.set(id, null);
    for (const resume of waiting) resume();
  }

  /** @param {string} id */
  gone(id) {
    this.#gone.add(id);
    this.unblock(id);
    for (const each of this.#pending.values()) {
      if (each.id === id) each.reject(new this.client.PeerClosed("the peer is gone", { reason: "left" }));
    }
  }
}

const KINDS = { receiving: Receiving, sending: Sending };

/** @param {unknown} value */
function shown(value) {
  return JSON.stringify(value, (_, each) =>
    each && typeof each === "object" && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)))
      : each,
  );
}

/**
 * @param {unknown} a
 * @param {unknown} b
 */
const byText = (a, b) => (shown(a) < shown(b) ? -1 : 1);

/**
 * Where the walk comes to something else; null when it does not.
 * @param {any} client what the parts of the client export
 * @param {"receiving" | "sending"} kind
 * @param {[operation: any[], came: any[]][]} steps
 */
export async function repeat(client, kind, steps) {
  const walk = new KINDS[kind](client);
  /** @type {string[]} */
  const before = [];
  for (const [operation, expected] of steps) {
    const actual = shown(await walk.step(operation));
    before.push(`${shown(operation)} -> ${actual}`);
    const wanted = shown(expected.sort(byText));
    if (actual !== wanted) return `${before.join("\n")}\nnot ${wanted}`;
  }
  return null;
}

/** Ann sends, Bob receives, in one page. */
export class Pair {
  ann = { id: "ann", incarnation: "the first", closedReason: null };
  bob = { id: "bob", incarnation: "the first", closedReason: null };
  /** What Bob is told. @type {any[]} */
  events = [];
  /** Bytes whose credit was not given back. */
  unread = 0;
  /** Called with each message of bytes before it arrives. @type {(bytes: Uint8Array) => unknown} */
  before = () => {};

  /**
   * @param {any} client
   * @param {number} chunk
   */
  constructor(client, chunk = CHUNK) {
    this.client = client;
    this.sending = new client.Files({ chunk });
    this.receiving = new client.Files({ chunk, onEvent: (/** @type {any} */ event) => this.events.push(event) });
  }

  /**
   * @param {Blob} blob
   * @param {object} [options]
   */
  send(blob, options) {
    const { client, receiving, ann } = this;
    const wire = {
      request: (/** @type {any} */ data, /** @type {{signal: AbortSignal}} */ { signal }) => {
        const answer = new Promise((reply, reject) =>
          receiving.request(ann, data, { reply, error: (/** @type {string} */ text) => reject(new client.RequestFailed(text)) }),
        );
        return abortable(answer, signal);
      },
      send: async (/** @type {Uint8Array} */ bytes, /** @type {{signal: AbortSignal}} */ { signal }) => {
        await this.before(bytes);
        signal.throwIfAborted();
        this.unread += bytes.length;
        receiving.data(ann, bytes.slice(), () => (this.unread -= bytes.length));
      },
    };
    return this.sending.send(this.bob, wire, blob, options);
  }

  /**
   * What comes of both: the result, or the name and text of the error.
   * @param {Promise<any>} sent
   * @param {Promise<any>} received
   */
  static async both(sent, received) {
    const settled = await Promise.allSettled([sent, received]);
    return settled.map((each) =>
      each.status === "fulfilled" ? each.value : [each.reason.name, each.reason.message],
    );
  }
}
