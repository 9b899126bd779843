// A person in a room, for tests/browser/rooms.py: the relay's /meshpeer.js as a page of another origin
// uses it. The address of the page says who that is and where:
//
//     mesh.html?relay=http://localhost:3001&options={"room": "lobby", "peerId": "ann"}
//
// so that a page that is loaded anew is back in its room. Times are seconds since the epoch.

/** @typedef {{what: string, at: number, detail: any}} Told */

const now = () => (performance.timeOrigin + performance.now()) / 1000;

/** What is waited for, past or to come. */
class Bell {
  /** @type {(() => void)[]} */
  #waiting = [];

  ring() {
    for (const resume of this.#waiting.splice(0)) resume();
  }

  /**
   * @template T
   * @param {() => T | undefined | false} found
   * @returns {Promise<T>}
   */
  async until(found) {
    for (;;) {
      const value = found();
      if (value !== undefined && value !== false) return value;
      await new Promise((/** @type {(value?: any) => void} */ resume) => this.#waiting.push(resume));
    }
  }
}

/** Numbered messages of one sender: 0, 1, 2, … exactly once and in order, or not. */
class Numbers {
  /** When each arrived. @type {number[]} */
  arrivals = [];
  /** How many came by each path. @type {{[path: string]: number}} */
  paths = {};
  repeated = 0;
  reordered = 0;
  next = 0;
  /** @type {Set<number>} */
  missing = new Set();

  /**
   * @param {number} number
   * @param {string} path
   */
  take(number, path) {
    this.arrivals.push(now());
    this.paths[path] = (this.paths[path] ?? 0) + 1;
    if (number >= this.next) {
      for (let each = this.next; each < number; each++) this.missing.add(each);
      this.next = number + 1;
    } else if (this.missing.delete(number)) {
      this.reordered++;
    } else {
      this.repeated++;
    }
  }

  report() {
    const { arrivals, paths, repeated, reordered, next, missing } = this;
    return { arrivals, paths, repeated, reordered, next, lost: missing.size };
  }
}

const EVENTS = [
  ...["joined", "signaling-changed", "peer-joined", "peer-updated", "peer-left", "peer-state-changed"],
  ...["connection-report", "messages-undelivered", "notice-received", "bad-input", "replaced", "closed"],
];

class Person {
  bell = new Bell();
  /** @type {Told[]} */
  told = [];
  /** What came on "chat", oldest first. @type {{sender: string, data: any, path: string, at: number}[]} */
  said = [];
  /** By sender: what came on "numbers". @type {Map<string, Numbers>} */
  numbers = new Map();
  /** By sender: when the first and the last of the messages on "bulk" came, and how many. @type {Map<string, Numbers>} */
  bulk = new Map();
  /** The streams that run, by receiver. @type {Map<string, {stop: boolean, done: Promise<number>}>} */
  #streams = new Map();
  /** @type {any} */
  mesh = null;

  /**
   * Enters the room; what `start` throws is thrown.
   * @param {string} relay
   * @param {any} options
   */
  async enter(relay, options) {
    const { PeerManager } = await import(`${relay}/meshpeer.js`);
    const mesh = new PeerManager(relay.replace(/^http/, "ws"), options);
    this.mesh = mesh;
    for (const what of EVENTS) {
      mesh.addEventListener(what, (/** @type {CustomEvent} */ event) => this.tell(what, event.detail));
    }
    mesh.addEventListener("message", (/** @type {CustomEvent} */ event) => this.#take(event.detail));
    this.tell("starting");
    await mesh.start();
    return mesh.peerId;
  }

  /**
   * @param {string} what
   * @param {any} detail
   */
  tell(what, detail = {}) {
    this.told.push({ what, at: now(), detail });
    this.bell.ring();
  }

  /** @param {any} message */
  #take({ sender, data, channel, path }) {
    if (channel === "numbers" || channel === "bulk") {
      const by = channel === "bulk" ? this.bulk : this.numbers;
      if (!by.has(sender.id)) by.set(sender.id, new Numbers());
      by.get(sender.id)?.take(parseInt(data), path);
    } else if (channel === "kept") {
      // What is to be counted across reloads.
      const key = `kept ${sender.id} ${data}`;
      sessionStorage.setItem(key, String(Number(sessionStorage.getItem(key)) + 1));
    } else {
      this.said.push({ sender: sender.id, data, path, at: now() });
    }
    this.bell.ring();
  }

  /** @param {string} sender */
  kept(sender) {
    const start = `kept ${sender} `;
    const keys = Object.keys(sessionStorage).filter((key) => key.startsWith(start));
    return keys.map((key) => [Number(key.slice(start.length)), Number(sessionStorage.getItem(key))]);
  }

  /**
   * The first event from place `from` on that has this detail.
   * @param {string} what
   * @param {{[name: string]: any}} detail
   * @param {number} from
   */
  async until(what, detail = {}, from = 0) {
    const is = (/** @type {Told} */ each) =>
      each.what === what && Object.entries(detail).every(([name, value]) => each.detail[name] === value);
    const found = await this.bell.until(() => this.told.slice(from).find(is));
    return { what, at: found.at };
  }

  /**
   * When all of these were first connected, by their ids; those that are are looked at as well.
   * @param {string[]} ids
   * @param {string | null} path by which; null: whichever
   */
  async connected(ids, path = null) {
    const is = (/** @type {string} */ id) => {
      const peer = this.mesh?.peers.get(id);
      return peer?.state === "connected" && (path === null || peer.path === path);
    };
    await this.bell.until(() => ids.every(is));
    return now();
  }

  /**
   * @param {string} id
   * @param {any} data
   */
  async say(id, data) {
    await this.mesh.peers.get(id).send(data, "chat");
    return now();
  }

  /**
   * When this was said by that one.
   * @param {string} sender
   * @param {any} data
   */
  async heard(sender, data) {
    return await this.bell.until(() => this.said.find((each) => each.sender === sender && each.data === data));
  }

  /**
   * Begins to send numbered messages.
   * @param {string} id
   * @param {number} interval seconds between two
   */
  stream(id, interval) {
    const stream = { stop: false, done: Promise.resolve(0) };
    stream.done = (async () => {
      const peer = this.mesh.peers.get(id);
      const began = now();
      let sent = 0;
      while (!stream.stop) {
        await peer.send(String(sent++), "numbers");
        const wait = began + sent * interval - now();
        if (wait > 0) await new Promise((resume) => setTimeout(resume, 1000 * wait));
      }
      return sent;
    })();
    this.#streams.set(id, stream);
  }

  /**
   * Ends it; returns how many there were, or more of it.
   * @param {string} id
   */
  async stop(id) {
    const stream = this.#streams.get(id);
    if (!stream) throw new Error(`no stream to ${id}`);
    stream.stop = true;
    return await stream.done;
  }

  /**
   * Begins to send numbers on "kept" to whoever has this id, and once more what was not delivered.
   * @param {string} id
   * @param {number} interval seconds between two
   */
  keepOn(id, interval) {
    /** @type {string[]} */
    const again = [];
    /** @type {number[]} */
    const undelivered = [];
    let next = 0;
    const stream = { stop: false, done: Promise.resolve(/** @type {any} */ (null)) };
    this.mesh.addEventListener("messages-undelivered", (/** @type {CustomEvent} */ { detail }) => {
      for (const { data } of detail.messages) {
        again.push(data);
        undelivered.push(Number(data));
      }
    });
    stream.done = (async () => {
      while (!stream.stop || again.length) {
        const data = again.shift() ?? String(next++);
        const peer = await this.bell.until(() => this.mesh.peers.get(id));
        try {
          await peer.send(data, "kept");
        } catch (error) {
          if (/** @type {any} */ (error).name !== "PeerClosed" && /** @type {any} */ (error).name !== "Undelivered") throw error;
          again.unshift(data);
          await new Promise((resume) => setTimeout(resume));
        }
        if (!stream.stop) await new Promise((resume) => setTimeout(resume, 1000 * interval));
      }
      await this.mesh.peers.get(id).flush();
      return { sent: next, undelivered };
    })();
    this.#streams.set(id, stream);
  }

  /**
   * Waits for so many of a stream.
   * @param {string} sender
   * @param {number} count
   * @param {"numbers" | "bulk"} which
   */
  async reached(sender, count, which = "numbers") {
    await this.bell.until(() => (this[which].get(sender)?.arrivals.length ?? 0) >= count);
  }

  /**
   * @param {string} sender
   * @param {"numbers" | "bulk"} which
   */
  report(sender, which = "numbers") {
    return (this[which].get(sender) ?? new Numbers()).report();
  }

  /**
   * Sends so many numbered messages of that size as fast as it goes, and waits for their arrival.
   * @param {string} id
   * @param {number} count
   * @param {number} size
   */
  async pour(id, count, size) {
    const peer = this.mesh.peers.get(id);
    for (let number = 0; number < count; number++) await peer.send(numbered(number, size), "bulk");
    await peer.flush();
  }

  /**
   * Sends a file of so many bytes, of which no two parts are the same.
   * @param {string} id
   * @param {number} size
   */
  async sendFile(id, size) {
    const part = new Uint8Array(65536);
    crypto.getRandomValues(part);
    const parts = [];
    for (let at = 0; at < size; at += part.length) {
      parts.push(new Uint32Array([at]), part.subarray(0, Math.min(part.length, size - at) - 4));
    }
    return await this.mesh.peers.get(id).sendFile(new Blob(parts), { name: "file.bin" });
  }

  /** Takes the next file; its size and sum, which is worked out once more. */
  async receiveFile() {
    const { size, sha256, blob } = await this.mesh.receiveFile();
    return { size, sha256, blob: blob.size };
  }
}

/**
 * @param {number} number
 * @param {number} size
 */
const numbered = (number, size) => `${number} `.padEnd(size, "x");

/** The other side of raw aiortc: a data channel, and descriptions with all candidates. */
class Bare {
  pc = new RTCPeerConnection();
  channel = this.pc.createDataChannel("bare", { negotiated: true, id: 0 });
  bell = new Bell();
  count = 0;
  bytes = 0;

  constructor() {
    this.channel.binaryType = "arraybuffer";
    this.channel.onopen = () => this.bell.ring();
    this.channel.onmessage = ({ data }) => {
      this.count++;
      this.bytes += data.length ?? data.byteLength;
      this.bell.ring();
    };
  }

  /** @param {string} sdp an offer; returns the answer */
  async answer(sdp) {
    await this.pc.setRemoteDescription({ type: "offer", sdp });
    const complete = new Promise((/** @type {(value?: any) => void} */ resume) => {
      this.pc.onicegatheringstatechange = () => this.pc.iceGatheringState === "complete" && resume();
    });
    await this.pc.setLocalDescription();
    await complete;
    return this.pc.localDescription?.sdp;
  }

  /** @param {number} count */
  async reached(count) {
    await this.bell.until(() => this.count >= count);
  }

  /**
   * Sends so many messages of that size, with no more waiting than meshpeer would leave.
   * @param {number} count
   * @param {number} size
   * @param {boolean} isText
   */
  async pour(count, size, isText) {
    const { channel } = this;
    await this.bell.until(() => channel.readyState === "open");
    channel.bufferedAmountLowThreshold = 512 * 1024;
    channel.onbufferedamountlow = () => this.bell.ring();
    const bytes = new Uint8Array(size);
    for (let number = 0; number < count; number++) {
      if (channel.bufferedAmount > 1024 * 1024) await this.bell.until(() => channel.bufferedAmount <= 512 * 1024);
      if (isText) channel.send(numbered(number, size));
      else channel.send(bytes);
    }
  }
}

const query = new URLSearchParams(location.search);
const person = new Person();
/** Settled when the page is in its room, or is refused. */
const entered = person.enter(query.get("relay") ?? "", JSON.parse(query.get("options") ?? "{}")).then(
  (peerId) => ({ peerId }),
  (error) => ({ error: error.name, code: error.code ?? null, text: String(error.message ?? error) }),
);
Object.assign(globalThis, { person, entered, Bare });
