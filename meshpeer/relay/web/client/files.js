// Files of any size between two peers: offered, accepted, sent, and checked by their SHA-256. The same
// as meshpeer's files.py; docs/files.md has the exchange, message by message.
//
// A page has no directory: what it sends is a File or a Blob, and what it receives becomes a Blob, or
// goes where the application wants it. Nothing is held in memory but what is under way: a Blob is kept
// by the browser, which puts it on the disk when it is large.

import {
  ConfigError,
  MeshClosed,
  MeshTimeout,
  MessageTooLarge,
  PeerClosed,
  ProtocolError,
  RequestFailed,
  TooManyChannels,
  TransferFailed,
  repr,
  utf8Length,
} from "./codec.js";
import { Bell, Turns, abortable, scoped } from "./streams.js";

/** The channel of messages that transfers go over. */
export const FILE_CHANNEL = "meshpeer.file";
/** Bytes of a file in one message, at most. */
export const FILE_CHUNK = 256 * 1024;
/** How many offers wait for a `Files.receive`; further ones are refused. */
export const MAX_FILE_OFFERS = 16;

/** Transfers of peers that left, of which is known whom to answer when they are back. */
const MAX_BROKEN_FILES = 1000;
/** Bytes that are read of a Blob at once. Each read costs a round trip to the browser's process. */
const FILE_BLOCK = 1024 * 1024;
/** Bytes that are collected before they are handed to the browser as a Blob. */
const FILE_PIECE = 4 * 1024 * 1024;
/** Seconds that a sink has to end what it does, and to be told of the end, before who waits is told. */
const FILE_END_PATIENCE = 1;
/** Milliseconds between two reports of progress, at least. */
const FILE_REPORT_EVERY = 100;
/** Milliseconds that are worked without letting the page do something else. */
const FILE_WORK = 8;
/** Bytes of UTF-8 in the name of a file: what common file systems take. */
const MAX_FILE_NAME = 255;
/** Characters in the reason for which a file is stopped. */
const MAX_FILE_WHY = 500;

/**
 * What of a peer is looked at.
 * @typedef {object} FilePeer
 * @property {string} id
 * @property {string} incarnation
 * @property {string | null} closedReason
 */

/**
 * How far a transfer is. The first report has where it begins, more than 0 when resumed.
 * @typedef {object} FileProgress
 * @property {"FileProgress"} kind
 * @property {FilePeer} peer  who is at the other end
 * @property {string} name
 * @property {number} size  bytes of the whole file
 * @property {number} done  bytes accepted for sending, or stored at the receiving side, with those of
 *   an earlier transfer; falls back to 0 when those were wrong
 */

/**
 * A file that the other side has stored and checked.
 * @typedef {object} FileSent
 * @property {"FileSent"} kind
 * @property {string} name  what it was offered as
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 * @property {number} resumedFrom  how many bytes the other side had from an earlier transfer
 */

/**
 * A file that is stored and checked.
 * @typedef {object} FileReceived
 * @property {"FileReceived"} kind
 * @property {string} name  what it was offered as
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 * @property {FilePeer} sender
 * @property {number} resumedFrom  how many bytes were here from an earlier transfer
 * @property {Blob | null} blob  the file; null where the application gave a sink
 */

/**
 * A peer offers a file, which waits until it is received or refused.
 * @typedef {object} FileOffered
 * @property {"FileOffered"} kind
 * @property {string} peerId
 * @property {string} name
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 */

/**
 * An offer is gone before anybody took it: its sender stopped, or left.
 * @typedef {object} FileWithdrawn
 * @property {"FileWithdrawn"} kind
 * @property {string} peerId
 * @property {string} name
 * @property {string} reason
 */

/** @typedef {Blob | null | undefined | void} MaybeBlob */

/**
 * Where an incoming file goes. What the methods return is waited for; the sender gets its credit back
 * when `write` is done, so a slow sink slows the sender. What they throw ends the transfer.
 * @typedef {object} FileSink
 * @property {(offer: FileOffered) => MaybeBlob | Promise<MaybeBlob>} [begin]
 *   what an earlier transfer of this file left here; it goes on from there. Without, from the beginning
 * @property {(bytes: Uint8Array) => unknown} write  the next bytes, which are the sink's own
 * @property {() => unknown} [empty]  forget what is there: the file comes anew. Needed where `begin`
 *   gives something
 * @property {() => unknown} [close]  all is there, and the sum is right
 * @property {(reason: unknown) => unknown} [abort]  it ended early; what is there may be kept. Called
 *   when what was begun before is done
 */

/** @typedef {FileSink | WritableStream<Uint8Array>} FilePlace */
/** @typedef {FilePlace | ((offer: FileOffered) => FilePlace | Promise<FilePlace>)} FileTarget */

/**
 * One peer's `FILE_CHANNEL`, seen from the sending side. What it takes arrives in order. Both reject
 * with `signal.reason` when it is aborted.
 * @typedef {object} FileWire
 * @property {(data: object, options: {signal: AbortSignal}) => Promise<unknown>} request  JSON-able there
 *   and back; rejects with `RequestFailed`, `PeerClosed`, `MeshClosed`
 * @property {(data: Uint8Array, options: {signal: AbortSignal}) => Promise<unknown>} send  waits for
 *   room; rejects with `PeerClosed`, `MeshClosed`
 */

/**
 * The answer to a request, given once, now or later. Too late, nothing comes of it.
 * @typedef {object} FileAnswer
 * @property {(data: object) => unknown} reply  answer with something JSON-able
 * @property {(text: string) => unknown} error  answer with an error: `RequestFailed` at the other side
 */

/** @typedef {(progress: FileProgress) => unknown} FileReport */

/** Lets the page do something else now and then, in a background tab as well. */
class FileBreath {
  #turns = new Turns();
  #since = performance.now();

  /** To be awaited after each piece of work. */
  async pause() {
    if (performance.now() - this.#since < FILE_WORK) return;
    await this.#turns.next();
    this.#since = performance.now();
  }
}

// --- SHA-256 ---------------------------------------------------------------------------------------

// prettier-ignore
const SHA256_ROUNDS = Int32Array.of(
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
);

/**
 * The SHA-256 (FIPS 180-4) of bytes that come one after another.
 *
 * `crypto.subtle` takes all of them at once, and is not there in a page over http.
 */
export class Sha256 {
  // prettier-ignore
  #state = Int32Array.of(
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
  );
  #words = new Int32Array(64);
  /** What does not fill a block yet. */
  #rest = new Uint8Array(64);
  #used = 0;
  #size = 0;

  /**
   * Adds bytes.
   * @param {Uint8Array} data
   */
  update(data) {
    this.#size += data.length;
    let at = 0;
    if (this.#used) {
      at = Math.min(64 - this.#used, data.length);
      this.#rest.set(data.subarray(0, at), this.#used);
      this.#used += at;
      if (this.#used < 64) return;
      this.#compress(this.#rest, 0, 64);
      this.#used = 0;
    }
    const end = data.length - ((data.length - at) % 64);
    if (at < end) this.#compress(data, at, end);
    if (end < data.length) {
      this.#rest.set(data.subarray(end));
      this.#used = data.length - end;
    }
  }

  /** The sum of all so far, in lower-case hexadecimal; more may be added. */
  get hex() {
    const state = this.#state.slice();
    const last = new Uint8Array(this.#used < 56 ? 64 : 128);
    last.set(this.#rest.subarray(0, this.#used));
    last[this.#used] = 0x80;
    const view = new DataView(last.buffer);
    view.setUint32(last.length - 8, Math.floor(this.#size / 2 ** 29));
    view.setUint32(last.length - 4, (this.#size % 2 ** 29) * 8);
    this.#compress(last, 0, last.length);
    const sum = Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
    this.#state = state;
    return sum;
  }

  /**
   * Takes in whole blocks.
   * @param {Uint8Array} data
   * @param {number} at
   * @param {number} end
   */
  #compress(data, at, end) {
    const w = this.#words;
    const state = this.#state;
    // One by one: destructuring goes by way of an iterator, and makes all of it four times as slow.
    let h0 = state[0];
    let h1 = state[1];
    let h2 = state[2];
    let h3 = state[3];
    let h4 = state[4];
    let h5 = state[5];
    let h6 = state[6];
    let h7 = state[7];
    while (at < end) {
      for (let i = 0; i < 16; i++, at += 4) {
        w[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
      }
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15];
        const y = w[i - 2];
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      let a = h0;
      let b = h1;
      let c = h2;
      let d = h3;
      let e = h4;
      let f = h5;
      let g = h6;
      let h = h7;
      // Eight rounds at once, each with the names one place further: moving the values costs a fifth.
      // prettier-ignore
      for (let i = 0; i < 64; i += 8) {
        h = (h + (((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))) + (g ^ (e & (f ^ g))) + SHA256_ROUNDS[i] + w[i]) | 0;
        d = (d + h) | 0;
        h = (h + (((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))) + ((a & b) | (c & (a | b)))) | 0;
        g = (g + (((d >>> 6) | (d << 26)) ^ ((d >>> 11) | (d << 21)) ^ ((d >>> 25) | (d << 7))) + (f ^ (d & (e ^ f))) + SHA256_ROUNDS[i + 1] + w[i + 1]) | 0;
        c = (c + g) | 0;
        g = (g + (((h >>> 2) | (h << 30)) ^ ((h >>> 13) | (h << 19)) ^ ((h >>> 22) | (h << 10))) + ((h & a) | (b & (h | a)))) | 0;
        f = (f + (((c >>> 6) | (c << 26)) ^ ((c >>> 11) | (c << 21)) ^ ((c >>> 25) | (c << 7))) + (e ^ (c & (d ^ e))) + SHA256_ROUNDS[i + 2] + w[i + 2]) | 0;
        b = (b + f) | 0;
        f = (f + (((g >>> 2) | (g << 30)) ^ ((g >>> 13) | (g << 19)) ^ ((g >>> 22) | (g << 10))) + ((g & h) | (a & (g | h)))) | 0;
        e = (e + (((b >>> 6) | (b << 26)) ^ ((b >>> 11) | (b << 21)) ^ ((b >>> 25) | (b << 7))) + (d ^ (b & (c ^ d))) + SHA256_ROUNDS[i + 3] + w[i + 3]) | 0;
        a = (a + e) | 0;
        e = (e + (((f >>> 2) | (f << 30)) ^ ((f >>> 13) | (f << 19)) ^ ((f >>> 22) | (f << 10))) + ((f & g) | (h & (f | g)))) | 0;
        d = (d + (((a >>> 6) | (a << 26)) ^ ((a >>> 11) | (a << 21)) ^ ((a >>> 25) | (a << 7))) + (c ^ (a & (b ^ c))) + SHA256_ROUNDS[i + 4] + w[i + 4]) | 0;
        h = (h + d) | 0;
        d = (d + (((e >>> 2) | (e << 30)) ^ ((e >>> 13) | (e << 19)) ^ ((e >>> 22) | (e << 10))) + ((e & f) | (g & (e | f)))) | 0;
        c = (c + (((h >>> 6) | (h << 26)) ^ ((h >>> 11) | (h << 21)) ^ ((h >>> 25) | (h << 7))) + (b ^ (h & (a ^ b))) + SHA256_ROUNDS[i + 5] + w[i + 5]) | 0;
        g = (g + c) | 0;
        c = (c + (((d >>> 2) | (d << 30)) ^ ((d >>> 13) | (d << 19)) ^ ((d >>> 22) | (d << 10))) + ((d & e) | (f & (d | e)))) | 0;
        b = (b + (((g >>> 6) | (g << 26)) ^ ((g >>> 11) | (g << 21)) ^ ((g >>> 25) | (g << 7))) + (a ^ (g & (h ^ a))) + SHA256_ROUNDS[i + 6] + w[i + 6]) | 0;
        f = (f + b) | 0;
        b = (b + (((c >>> 2) | (c << 30)) ^ ((c >>> 13) | (c << 19)) ^ ((c >>> 22) | (c << 10))) + ((c & d) | (e & (c | d)))) | 0;
        a = (a + (((f >>> 6) | (f << 26)) ^ ((f >>> 11) | (f << 21)) ^ ((f >>> 25) | (f << 7))) + (h ^ (f & (g ^ h))) + SHA256_ROUNDS[i + 7] + w[i + 7]) | 0;
        e = (e + a) | 0;
        a = (a + (((b >>> 2) | (b << 30)) ^ ((b >>> 13) | (b << 19)) ^ ((b >>> 22) | (b << 10))) + ((b & c) | (d & (b | c)))) | 0;
      }
      h0 = (h0 + a) | 0;
      h1 = (h1 + b) | 0;
      h2 = (h2 + c) | 0;
      h3 = (h3 + d) | 0;
      h4 = (h4 + e) | 0;
      h5 = (h5 + f) | 0;
      h6 = (h6 + g) | 0;
      h7 = (h7 + h) | 0;
    }
    state.set([h0, h1, h2, h3, h4, h5, h6, h7]);
  }
}

// --- what is said ----------------------------------------------------------------------------------

/** @typedef {{do: "offer", name: string, size: number, sha256: string}} FileOffer */
/** @typedef {FileOffer | {do: "finish"} | {do: "stop", why: string}} FileRequest */

/** @param {string} text */
const malformedFile = (text) =>
  new ProtocolError(`malformed message about a file: ${text}`, { code: "bad_file" });

/**
 * @param {unknown} data
 * @returns {Record<string, unknown>}
 */
function fileObject(data) {
  if (typeof data !== "object" || data === null || Array.isArray(data)) {
    throw malformedFile("it is no object");
  }
  return /** @type {Record<string, unknown>} */ (data);
}

/** @param {unknown} value */
const isFileSize = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;

/**
 * @param {unknown} data
 * @returns {FileRequest}
 */
function decodeFileRequest(data) {
  const message = fileObject(data);
  switch (message.do) {
    case "offer": {
      const { name, size, sha256 } = message;
      if (typeof name !== "string") throw malformedFile("`name` is no text");
      if (!isFileSize(size)) throw malformedFile("`size` is no whole number from 0, below 2^53");
      if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) {
        throw malformedFile("`sha256` is not 64 lower-case hexadecimal digits");
      }
      return { do: "offer", name, size: /** @type {number} */ (size), sha256 };
    }
    case "finish":
      return { do: "finish" };
    case "stop": {
      const { why } = message;
      // Two units may be one character.
      if (typeof why !== "string" || why.length > 2 * MAX_FILE_WHY || [...why].length > MAX_FILE_WHY) {
        throw malformedFile(`\`why\` is no text of at most ${MAX_FILE_WHY} characters`);
      }
      return { do: "stop", why };
    }
    default:
      throw malformedFile("`do` is none of offer, finish, stop");
  }
}

/** @param {unknown} data */
function decodeFileAccepted(data) {
  const { offset, chunk } = fileObject(data);
  if (!isFileSize(offset)) throw malformedFile("`offset` is no whole number from 0, below 2^53");
  if (!Number.isInteger(chunk) || /** @type {number} */ (chunk) < 1) {
    throw malformedFile("`chunk` is no whole number from 1");
  }
  return { offset: /** @type {number} */ (offset), chunk: /** @type {number} */ (chunk) };
}

/** @param {unknown} data */
function decodeFileFinished(data) {
  const { again } = fileObject(data);
  if (typeof again !== "boolean") throw malformedFile("`again` is neither true nor false");
  return { again };
}

/**
 * What makes a name unfit to be stored under; null when it is fit.
 * @param {string} name
 */
function fileNameFault(name) {
  if (["", ".", ".."].includes(name) || /[/\\]/.test(name)) return "is not the plain name of a file";
  // A home directory is read by programs that obey such files; nobody may plant them.
  if (name.startsWith(".")) return "begins with a dot, which hides a file";
  // Those of direction show "exe.fdp" for what ends in ".exe".
  if (/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]/u.test(name)) {
    return "has control characters or half characters in it";
  }
  if (utf8Length(name) > MAX_FILE_NAME) return `has more than ${MAX_FILE_NAME} bytes of UTF-8`;
  return null;
}

// --- Blobs and sinks -------------------------------------------------------------------------------

/** @param {unknown} value */
const isBlob = (value) => ["[object Blob]", "[object File]"].includes(Object.prototype.toString.call(value));

/** A Blob to send. */
class FileSource {
  /** What reading it failed with. @type {unknown} */
  failure = null;
  #blob;

  /** @param {Blob} blob */
  constructor(blob) {
    this.#blob = blob;
    this.size = blob.size;
  }

  /**
   * The sum of all of it.
   * @param {AbortSignal | null} signal
   */
  async sha256(signal) {
    const sum = new Sha256();
    const breath = new FileBreath();
    for (let at = 0; at < this.size; at += FILE_BLOCK) {
      sum.update(await abortable(this.read(at, FILE_BLOCK), signal));
      await breath.pause();
    }
    return sum.hex;
  }

  /**
   * The next bytes from there; as many as are asked for, or up to its end.
   * @param {number} position
   * @param {number} most
   */
  async read(position, most) {
    const end = Math.min(this.size, position + most);
    let data;
    try {
      data = new Uint8Array(await this.#blob.slice(position, end).arrayBuffer());
    } catch (error) {
      this.failure = error; // such as NotReadableError: the file has changed, or may not be read
      throw error;
    }
    if (data.length < end - position) throw new TransferFailed("the file became shorter while it was sent");
    return data;
  }
}

/**
 * Makes a Blob of a file.
 *
 * Kept by the application and given to `receiveFile` again after a transfer that broke, the same file
 * goes on where it was.
 * @implements {FileSink}
 */
export class BlobSink {
  /** @type {Blob[]} */
  #blobs = [];
  /** @type {Uint8Array<ArrayBuffer>[]} */
  #pieces = [];
  #collected = 0;
  #sha256 = "";

  /** The file as far as it is here. */
  get blob() {
    this.#hand();
    return new Blob(this.#blobs);
  }

  /** @param {FileOffered} offer */
  begin({ sha256 }) {
    if (sha256 !== this.#sha256) this.empty();
    this.#sha256 = sha256;
    return this.blob;
  }

  /** @param {Uint8Array} bytes */
  write(bytes) {
    this.#pieces.push(/** @type {Uint8Array<ArrayBuffer>} */ (bytes));
    this.#collected += bytes.length;
    if (this.#collected >= FILE_PIECE) this.#hand();
  }

  /** Hands what is collected to the browser. */
  #hand() {
    if (!this.#collected) return;
    this.#blobs.push(new Blob(this.#pieces));
    this.#pieces = [];
    this.#collected = 0;
  }

  empty() {
    this.#blobs = [];
    this.#pieces = [];
    this.#collected = 0;
  }
}

/**
 * @param {FileSink | WritableStream} sink
 * @returns {sink is WritableStream}
 */
const isWritableStream = (sink) => "getWriter" in sink;

/**
 * A sink that writes to a stream, and closes or aborts it.
 * @param {WritableStream<Uint8Array>} stream
 * @returns {FileSink}
 */
function streamSink(stream) {
  const writer = stream.getWriter();
  return {
    write: (bytes) => writer.write(bytes),
    close: () => writer.close(),
    abort: (reason) => writer.abort(reason),
  };
}

/** Where an incoming file goes, and how far it is. */
class FileStore {
  /** Bytes that are in the sink and in the sum. */
  length = 0;
  /** What the sink threw. @type {unknown} */
  failure = null;
  #sum = new Sha256();
  /** @type {FileSink | null} */
  #sink = null;
  /** The sink can be aborted in the middle of a write. */
  #isStream = false;
  /** What is being done with the sink: who is aborted does not wait for it. */
  #inHand = Promise.resolve();
  #target;
  #offer;

  /**
   * @param {FileTarget} target
   * @param {FileOffered} offer
   */
  constructor(target, offer) {
    this.#target = target;
    this.#offer = offer;
  }

  /** Whether the sum is that of the offer. */
  get right() {
    return this.#sum.hex === this.#offer.sha256;
  }

  /**
   * Looks for what an earlier transfer left.
   * @param {AbortSignal | null} signal
   */
  open(signal) {
    return this.#begin(this.#open(signal));
  }

  /** @param {AbortSignal | null} signal */
  async #open(signal) {
    const target = this.#target;
    const place = await this.#do(() => (typeof target === "function" ? target(this.#offer) : target));
    const sink = await this.#do(() => (isWritableStream(place) ? streamSink(place) : place));
    this.#sink = sink;
    this.#isStream = sink !== place;
    signal?.throwIfAborted();
    const found = await this.#do(() => sink.begin?.(this.#offer));
    if (!found?.size) return;
    if (!sink.empty) throw new ConfigError("a sink whose begin() gives something needs empty()");
    if (found.size > this.#offer.size) {
      await this.empty();
      return;
    }
    const breath = new FileBreath();
    while (this.length < found.size) {
      const piece = found.slice(this.length, this.length + FILE_BLOCK);
      const data = new Uint8Array(await abortable(this.#do(() => piece.arrayBuffer()), signal));
      this.#sum.update(data);
      this.length += data.length;
      await breath.pause();
    }
  }

  /**
   * Adds to the end.
   * @param {Uint8Array} bytes
   */
  write(bytes) {
    return this.#begin(this.#write(bytes));
  }

  /** @param {Uint8Array} bytes */
  async #write(bytes) {
    this.#sum.update(bytes);
    await this.#do(() => this.#sink?.write(bytes));
    this.length += bytes.length;
  }

  /** Begins anew. */
  async empty() {
    await this.#do(() => this.#sink?.empty?.());
    this.#sum = new Sha256();
    this.length = 0;
  }

  /** All of it is there and right. */
  async publish() {
    await this.#do(() => this.#sink?.close?.());
  }

  /**
   * It ended early; what is wrong is not kept.
   * @param {unknown} reason
   * @param {{remove: boolean}} options
   */
  async abort(reason, { remove }) {
    if (!this.#isStream) await this.#inHand;
    if (remove) await this.#sink?.empty?.();
    await this.#sink?.abort?.(reason);
  }

  /** @param {Promise<void>} work */
  #begin(work) {
    this.#inHand = work.catch(() => {}); // who waits for it is told
    return work;
  }

  /**
   * @template T
   * @param {() => T} call
   */
  async #do(call) {
    try {
      return await call();
    } catch (error) {
      this.failure = error;
      throw error;
    }
  }
}

// --- progress --------------------------------------------------------------------------------------

/** Reports progress, but not too often. */
class FileMeter {
  #report;
  #about;
  #next = -Infinity;

  /**
   * @param {FileReport | null} report
   * @param {{peer: FilePeer, name: string, size: number}} about
   */
  constructor(report, { peer, name, size }) {
    this.#report = report;
    this.#about = { peer, name, size };
  }

  /**
   * So far it is; told when the last report is some time ago.
   * @param {number} done
   */
  at(done) {
    const now = performance.now();
    if (now < this.#next) return;
    this.#next = now + FILE_REPORT_EVERY;
    this.tell(done);
  }

  /**
   * Tells it in any case.
   * @param {number} done
   */
  tell(done) {
    this.#report?.({ kind: "FileProgress", ...this.#about, done });
  }
}

// --- transfers -------------------------------------------------------------------------------------

/** @typedef {{again: boolean} | string} FileOutcome  an answer to `finish`, or the text of an error */

/** A file that one peer offers or sends. */
class IncomingFile {
  accepted = false;
  /** Nothing is made of what still comes. */
  over = false;
  /** What ended it from outside. @type {Error | null} */
  error = null;
  /** Bytes of the file that the peer has sent, with those that were here. */
  #arrived = 0;
  /** @type {[payload: Uint8Array, taken: () => void][]} */
  #chunks = [];
  #bell = new Bell();
  /** Takes the outcome, once the peer has asked for it. @type {FileAnswer | null} */
  #finishing = null;
  /** The outcome, until the peer asks for it. @type {FileOutcome | null} */
  #outcome = null;
  /** Takes the answer to the offer. */
  #offered;

  /**
   * @param {FilePeer} peer
   * @param {FileOffer} offer
   * @param {FileAnswer} offered
   */
  constructor(peer, { name, size, sha256 }, offered) {
    this.peer = peer;
    /** @type {FileOffered} */
    this.offer = { kind: "FileOffered", peerId: peer.id, name, size, sha256 };
    this.#offered = offered;
  }

  /**
   * Lets it come from there on, in messages of so many bytes at most.
   * @param {number} offset
   * @param {number} chunk
   */
  accept(offset, chunk) {
    this.check();
    this.accepted = true;
    this.#arrived = offset;
    this.#offered.reply({ offset, chunk });
  }

  /** Throws what ended it from outside. */
  check() {
    if (this.error !== null) throw this.error;
  }

  /** The peer never noticed that it was given up, and waits for an answer. */
  unanswered() {
    const why = "the receiver had given the sender up";
    if (this.accepted) this.#settle(why);
    else this.#offered.error(why);
  }

  /** Lets it come once more, from its beginning. */
  again() {
    this.#arrived = 0;
    this.#settle({ again: true });
  }

  /** All is well. */
  finish() {
    if (this.over) return;
    this.over = true;
    this.#settle({ again: false });
  }

  /**
   * No, or no more.
   * @param {string} why
   */
  refuse(why) {
    if (this.over) return;
    this.over = true;
    this.#drop();
    if (this.accepted) this.#settle(why);
    else this.#offered.error(why);
  }

  /**
   * It is over for a reason that is not ours.
   * @param {Error} error
   */
  fail(error) {
    this.over = true;
    this.#drop();
    this.error ??= error;
    this.#bell.ring();
  }

  /**
   * The peer asks how it comes out.
   * @param {FileAnswer} answer
   */
  asked(answer) {
    if (!this.accepted || this.#finishing !== null) {
      throw new ProtocolError("asked for the end of a file out of turn", { code: "bad_file" });
    }
    this.#finishing = answer;
    if (this.#outcome !== null) this.#settle(this.#outcome);
  }

  /** @param {FileOutcome} outcome */
  #settle(outcome) {
    const answer = this.#finishing;
    this.#finishing = null;
    this.#outcome = answer === null ? outcome : null;
    if (typeof outcome === "string") answer?.error(outcome);
    else answer?.reply(outcome);
  }

  /**
   * The next bytes of it.
   * @param {Uint8Array} payload
   * @param {() => void} taken
   */
  add(payload, taken) {
    if (!this.accepted) {
      throw new ProtocolError("bytes of a file that was not accepted", { code: "bad_file" });
    }
    const missing = this.offer.size - this.#arrived;
    if (!payload.length || payload.length > missing) {
      throw new ProtocolError(`${payload.length} bytes where ${missing} of the file are missing`, {
        code: "bad_file",
      });
    }
    this.#arrived += payload.length;
    if (this.over) {
      taken();
    } else {
      this.#chunks.push([payload, taken]);
      this.#bell.ring();
    }
  }

  #drop() {
    for (const [, taken] of this.#chunks.splice(0)) taken();
  }

  /**
   * Writes what comes, as it comes, until all is there. Throws what ended it early.
   * @param {FileStore} store
   * @param {FileMeter} meter
   * @param {AbortSignal | null} signal
   */
  async writeTo(store, meter, signal) {
    const breath = new FileBreath();
    while (store.length < this.offer.size) {
      signal?.throwIfAborted();
      const next = this.#chunks.shift();
      if (next === undefined) {
        this.check();
        await this.#bell.wait(signal);
        continue;
      }
      const [payload, taken] = next;
      try {
        await abortable(store.write(payload), signal);
      } finally {
        taken();
      }
      meter.at(store.length);
      await breath.pause();
    }
  }
}

/**
 * All transfers of one manager. `FILE_CHANNEL`'s messages go in by `request` and `data`.
 *
 * To each peer and from each peer one file travels at a time. `maxOffers` is how many offers wait for
 * `receive`, `chunk` the most bytes of a file that are sent and taken in one message; `onEvent` is told
 * of offers.
 */
export class Files {
  #maxOffers;
  #chunk;
  #tell;
  /** What whoever asks for something gets, once it is closed. @type {Error | null} */
  #closed = null;
  /**
   * Resolves when the last file that waits to be sent to the peer is done.
   * @type {WeakMap<FilePeer, Promise<void>>}
   */
  #turns = new WeakMap();
  /**
   * Tell the peer that a file does not come. The next one is not offered before that.
   * @type {Map<FilePeer, Promise<void>>}
   */
  #farewells = new Map();
  /** Aborts the farewells. */
  #ending = new AbortController();
  /** The latest of each peer. @type {Map<FilePeer, IncomingFile>} */
  #incoming = new Map();
  /**
   * What was under way from those that left, by peer id and incarnation.
   * @type {Map<string, IncomingFile>}
   */
  #broken = new Map();
  /** Those that nobody has taken yet. @type {IncomingFile[]} */
  #offers = [];
  #bell = new Bell();

  /**
   * @param {object} [options]
   * @param {number} [options.maxOffers]
   * @param {number} [options.chunk]
   * @param {(event: FileOffered | FileWithdrawn) => unknown} [options.onEvent]
   */
  constructor({ maxOffers = MAX_FILE_OFFERS, chunk = FILE_CHUNK, onEvent = () => {} } = {}) {
    this.#maxOffers = maxOffers;
    this.#chunk = chunk;
    this.#tell = onEvent;
  }

  /** Offers that wait for `receive` or `refuse`, the oldest first. One of each peer at most. */
  get offers() {
    return this.#offers.map((incoming) => incoming.offer);
  }

  // --- sending ---

  /**
   * Sends a File or Blob; resolves when the other side has stored and checked it.
   *
   * `name` is what it is offered as, by default that of the File. Waits for its turn when other files
   * go to this peer, and for the other side to accept it. `onProgress` is called at most ten times a
   * second, and at the beginning and the end; what it throws ends the transfer.
   *
   * Throws `TransferFailed` when the other side refuses or stops it, or the file became shorter
   * meanwhile, `PeerClosed` when the peer is gone, `MeshClosed`, `ConfigError` for a name that no
   * receiver takes or what is no Blob, and what the browser throws when it can't be read, such as
   * `NotReadableError` for a file that changed. When `signal` is aborted, the other side is told; what
   * it has stored stays there, and the next transfer of the same file goes on from it.
   * @param {FilePeer} peer
   * @param {FileWire} wire
   * @param {Blob} blob
   * @param {{name?: string | null, onProgress?: FileReport | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<FileSent>}
   */
  async send(peer, wire, blob, { name = null, onProgress = null, signal: given = null } = {}) {
    if (!isBlob(blob)) throw new ConfigError("what is sent as a file is a File or a Blob");
    const offered = name ?? /** @type {Partial<File>} */ (blob).name ?? null;
    if (offered === null) throw new ConfigError("a Blob has no name: give it one as name");
    const fault = fileNameFault(offered);
    if (fault) throw new ConfigError(`the name ${repr(offered)} ${fault}: give another as name`);
    this.#checkOpen();
    const signal = given ?? new AbortController().signal;
    signal.throwIfAborted();
    const before = this.#turns.get(peer);
    let done = () => {};
    const mine = new Promise((/** @type {(value: void) => void} */ resolve) => (done = resolve));
    this.#turns.set(peer, before ? before.then(() => mine) : mine);
    try {
      if (before) await abortable(before, signal);
      this.#checkOpen();
      const source = new FileSource(blob);
      const { size } = source;
      const sha256 = await source.sha256(signal);
      const meter = new FileMeter(onProgress, { peer, name: offered, size });
      /** @type {FileOffer} */
      const offer = { do: "offer", name: offered, size, sha256 };
      const way = { wire, source, meter, chunk: this.#chunk, signal };
      const resumedFrom = await this.#offer(peer, way, offer);
      return { kind: "FileSent", name: offered, size, sha256, resumedFrom };
    } finally {
      done();
    }
  }

  /**
   * Sends it to its end, or sees to it that the other side knows how it ended.
   * @param {FilePeer} peer
   * @param {FileWay} way
   * @param {FileOffer} offer
   */
  async #offer(peer, way, offer) {
    const farewell = this.#farewells.get(peer);
    if (farewell) await abortable(farewell, way.signal);
    this.#checkOpen();
    try {
      return await sendFile(way, offer);
    } catch (error) {
      // The other side has ended it.
      if (error instanceof RequestFailed) throw new TransferFailed(error.message);
      const nobodyToTell = [PeerClosed, MeshClosed, TooManyChannels, MessageTooLarge].some(
        (kind) => error instanceof kind,
      );
      if (!nobodyToTell && this.#closed === null) {
        // Not waited for here: the peer may be out of reach, and an abort is for now.
        this.#farewell(peer, way.wire, whyFileEnded(error, way.source.failure, "sender"));
      }
      throw error;
    }
  }

  /**
   * @param {FilePeer} peer
   * @param {FileWire} wire
   * @param {string} why
   */
  #farewell(peer, wire, why) {
    // Gone: then it knows. And what it says to it changes nothing.
    const said = wire.request({ do: "stop", why }, { signal: this.#ending.signal }).then(
      () => {},
      () => {},
    );
    const farewell = said.then(() => {
      if (this.#farewells.get(peer) === farewell) this.#farewells.delete(peer);
    });
    this.#farewells.set(peer, farewell);
  }

  // --- receiving ---

  /**
   * Waits for the next file that a peer offers, and receives it.
   *
   * `sender` is the id of the peer to take it from, any by default. `timeout` is how long to wait for
   * an offer, in seconds, null for no limit. The file becomes a Blob, or goes to `sink`: a
   * `WritableStream`, which is closed at the end or aborted, a `FileSink`, or a function that gives one
   * of these for an offer. `onProgress` is as in `Files.send`.
   *
   * Throws `MeshTimeout`, `TransferFailed` when the sender stops or what arrived is not what was sent,
   * `PeerClosed` when the sender is gone, `MeshClosed`, and what the sink throws. When `signal` is
   * aborted, the sender is told, and the sink keeps what it has.
   * @param {object} [options]
   * @param {string | null} [options.sender]
   * @param {number | null} [options.timeout]
   * @param {FileReport | null} [options.onProgress]
   * @param {FileTarget | null} [options.sink]
   * @param {AbortSignal | null} [options.signal]
   * @returns {Promise<FileReceived>}
   */
  async receive({ sender = null, timeout = null, onProgress = null, sink = null, signal = null } = {}) {
    if (sink !== null && !(typeof sink === "function" || "write" in sink || "getWriter" in sink)) {
      const kinds = "a WritableStream, an object with write(bytes), or a function that gives one";
      throw new ConfigError(`sink is ${kinds}`);
    }
    const incoming = await this.#nextOffer(sender, timeout, signal);
    const { peer, offer } = incoming;
    const blobSink = new BlobSink();
    const store = new FileStore(sink ?? blobSink, offer);
    const meter = new FileMeter(onProgress, { peer, ...offer });
    let wrong = false;
    let resumedFrom;
    try {
      await abortable(store.open(signal), signal);
      resumedFrom = await receiveFile(incoming, store, meter, this.#chunk, signal);
      if (!store.right) {
        wrong = true;
        const what = `what arrived as ${repr(offer.name)}`;
        throw new TransferFailed(`${what} is not what was sent: its SHA-256 is another`);
      }
      await store.publish();
      incoming.finish();
    } catch (error) {
      const isOurs = wrong && error instanceof TransferFailed;
      incoming.refuse(isOurs ? error.message : whyFileEnded(error, store.failure, "receiver"));
      const end = store.abort(error, { remove: wrong });
      // The first error is what counts. A sink that hangs keeps nobody, and is told when it is done.
      await scoped({ timeout: FILE_END_PATIENCE }, (scope) => abortable(end, scope)).catch(() => {});
      throw error;
    }
    meter.tell(offer.size);
    const { name, size, sha256 } = offer;
    const blob = sink === null ? blobSink.blob : null;
    return { kind: "FileReceived", name, size, sha256, sender: peer, resumedFrom, blob };
  }

  /**
   * Refuses the file that a peer offers: `TransferFailed` with this text at the sender. Returns whether
   * there was one that nobody had taken.
   * @param {string} peerId
   * @param {string} [why]
   */
  refuse(peerId, why = "the receiver does not want it") {
    const at = this.#offers.findIndex((incoming) => incoming.peer.id === peerId);
    if (at < 0) return false;
    const [incoming] = this.#offers.splice(at, 1);
    incoming.refuse(why);
    return true;
  }

  /**
   * @param {string | null} sender
   * @param {number | null} timeout
   * @param {AbortSignal | null} signal
   */
  async #nextOffer(sender, timeout, signal) {
    const late = () => {
      const whom = sender === null ? "" : ` from ${repr(sender)}`;
      return new MeshTimeout(`waited ${timeout} s for a file${whom}`);
    };
    return scoped({ timeout, signal, late }, async (signal) => {
      for (;;) {
        this.#checkOpen();
        const at = this.#offers.findIndex(({ peer }) => sender === null || peer.id === sender);
        if (at >= 0) return this.#offers.splice(at, 1)[0];
        await this.#bell.wait(signal);
      }
    });
  }

  // --- from the shell ---

  /**
   * A request arrived on `FILE_CHANNEL`. Throws `ProtocolError`; then nothing has changed.
   * @param {FilePeer} peer
   * @param {unknown} data
   * @param {FileAnswer} answer
   */
  request(peer, data, answer) {
    if (this.#closed !== null) {
      answer.error("the receiver is closed");
      return;
    }
    const message = decodeFileRequest(data);
    const incoming = this.#incoming.get(peer) ?? null;
    switch (message.do) {
      case "offer":
        if (incoming !== null && !incoming.over) {
          throw new ProtocolError("a file was offered before the last", { code: "bad_file" });
        }
        this.#offered(new IncomingFile(peer, message, answer));
        break;
      case "finish":
        if (incoming === null) {
          throw new ProtocolError("the end of a file that was not offered", { code: "bad_file" });
        }
        incoming.asked(answer);
        break;
      case "stop":
        if (incoming !== null) {
          incoming.refuse("it was stopped");
          this.#end(incoming, new TransferFailed(message.why));
        }
        answer.reply({});
        break;
    }
  }

  /**
   * Bytes arrived on `FILE_CHANNEL`; `taken` is called once they are stored, or dropped.
   *
   * That may be after `peerLeft` and after `close`. Throws `ProtocolError`; then nothing has changed
   * and `taken` is not called.
   * @param {FilePeer} peer
   * @param {Uint8Array} payload
   * @param {() => void} taken
   */
  data(peer, payload, taken) {
    if (this.#closed !== null) {
      taken();
      return;
    }
    const incoming = this.#incoming.get(peer);
    if (!incoming) throw new ProtocolError("bytes of a file that was not offered", { code: "bad_file" });
    incoming.add(payload, taken);
  }

  /**
   * The peer is there. One that left as far as we knew, and did not notice, hears that what it sends
   * came to its end here; what still comes of it is dropped.
   * @param {FilePeer} peer
   */
  peerJoined(peer) {
    const key = JSON.stringify([peer.id, peer.incarnation]);
    const incoming = this.#broken.get(key);
    if (!incoming) return;
    this.#broken.delete(key);
    this.#incoming.set(peer, incoming);
    incoming.unanswered();
  }

  /**
   * The peer is gone, and what it sent is over.
   * @param {FilePeer} peer
   */
  peerLeft(peer) {
    const incoming = this.#incoming.get(peer);
    if (!incoming) return;
    this.#incoming.delete(peer);
    if (!incoming.over) {
      this.#broken.set(JSON.stringify([peer.id, peer.incarnation]), incoming);
      if (this.#broken.size > MAX_BROKEN_FILES) {
        for (const oldest of this.#broken.keys()) {
          this.#broken.delete(oldest);
          break;
        }
      }
    }
    const reason = peer.closedReason || "closed";
    this.#end(incoming, new PeerClosed(`peer ${repr(peer.id)} is gone (${reason})`, { reason }));
  }

  /**
   * The manager closes: whoever receives gets `error`, or `MeshClosed`.
   *
   * To be called before the peers go, which would be told instead. Who sends hears it from its wire.
   * @param {Error | null} [error]
   */
  end(error = null) {
    this.#closed ??= error ?? new MeshClosed("the manager is closed");
    for (const incoming of this.#incoming.values()) this.#end(incoming, this.#closed);
    this.#incoming.clear();
    this.#bell.ring();
  }

  /** Ends it, and leaves nothing under way. May be called more than once. */
  async close() {
    this.end();
    this.#ending.abort(this.#closed);
    await Promise.all(this.#farewells.values());
  }

  /** @param {IncomingFile} incoming */
  #offered(incoming) {
    const { name } = incoming.offer;
    const fault = fileNameFault(name);
    this.#incoming.set(incoming.peer, incoming);
    if (fault) {
      incoming.refuse(`the name ${repr([...name.slice(0, 80)].slice(0, 40).join(""))} ${fault}`);
    } else if (this.#offers.length >= this.#maxOffers) {
      incoming.refuse(`${this.#maxOffers} files wait to be received already`);
    } else {
      this.#offers.push(incoming);
      this.#tell(incoming.offer);
      this.#bell.ring();
    }
  }

  /**
   * @param {IncomingFile} incoming
   * @param {Error} error
   */
  #end(incoming, error) {
    const at = this.#offers.indexOf(incoming);
    incoming.fail(error);
    if (at < 0) return;
    this.#offers.splice(at, 1);
    const { peerId, name } = incoming.offer;
    this.#tell({ kind: "FileWithdrawn", peerId, name, reason: error.message });
  }

  #checkOpen() {
    if (this.#closed !== null) throw this.#closed;
  }
}

/**
 * What the other side reads of what ended a transfer on this side.
 * @param {unknown} error
 * @param {unknown} failure  what reading or storing failed with
 * @param {"sender" | "receiver"} side
 */
function whyFileEnded(error, failure, side) {
  if (failure !== null && error === failure) {
    const verb = side === "receiver" ? "store" : "read";
    // Not all of it: what is here is nobody's business.
    return `the ${side} can't ${verb} it: ${error instanceof Error ? error.name : "error"}`;
  }
  return error instanceof TransferFailed
    ? `the file changed at the ${side} while it was sent`
    : `the ${side} stopped`;
}

/**
 * Receives what is missing, and all of it when that does not fit what was there.
 *
 * Returns how much of what was there is in it.
 * @param {IncomingFile} incoming
 * @param {FileStore} store
 * @param {FileMeter} meter
 * @param {number} chunk
 * @param {AbortSignal | null} signal
 */
async function receiveFile(incoming, store, meter, chunk, signal) {
  const found = store.length;
  incoming.accept(found, chunk);
  meter.at(found);
  await incoming.writeTo(store, meter, signal);
  if (!found || store.right) return found;
  await store.empty();
  incoming.again();
  await incoming.writeTo(store, meter, signal);
  return 0;
}

/**
 * What a file is sent with.
 * @typedef {object} FileWay
 * @property {FileWire} wire
 * @property {FileSource} source
 * @property {FileMeter} meter
 * @property {number} chunk  bytes in one message, at most
 * @property {AbortSignal} signal
 */

/**
 * Offers it and sends what is wanted of it. Returns how much the other side had.
 * @param {FileWay} way
 * @param {FileOffer} offer
 */
async function sendFile(way, offer) {
  const { wire, meter, signal } = way;
  const accepted = decodeFileAccepted(await wire.request(offer, { signal }));
  const { offset } = accepted;
  const chunk = Math.min(way.chunk, accepted.chunk);
  if (offset > offer.size) {
    throw new ProtocolError(`offset ${offset} in a file of ${offer.size} bytes`, { code: "bad_file" });
  }
  meter.at(offset);
  let sentWhole = !offset;
  let { again } = await passFile(way, offset, chunk);
  if (again && !sentWhole) {
    sentWhole = true;
    ({ again } = await passFile(way, 0, chunk));
  }
  if (again) throw new ProtocolError("a file that was sent whole is wanted again", { code: "bad_file" });
  meter.tell(offer.size);
  return sentWhole ? 0 : offset;
}

/**
 * Sends everything from there. Returns what the other side makes of it.
 * @param {FileWay} way
 * @param {number} offset
 * @param {number} chunk
 */
async function passFile(way, offset, chunk) {
  const inner = new AbortController();
  const stop = () => inner.abort(way.signal.reason);
  way.signal.addEventListener("abort", stop);
  if (way.signal.aborted) stop();
  const { signal } = inner;
  // Asked for at once, so that the other side can end it at any time.
  const finish = way.wire.request({ do: "finish" }, { signal }).then(decodeFileFinished);
  const pump = pumpFile({ ...way, chunk, signal }, offset);
  try {
    await Promise.race([finish, pump]);
    return await finish;
  } finally {
    way.signal.removeEventListener("abort", stop);
    inner.abort();
    finish.catch(() => {}); // told already, or of no interest any more
    await pump.catch(() => {});
  }
}

/**
 * Sends everything from there, reading one block ahead.
 * @param {FileWay} way
 * @param {number} offset
 */
async function pumpFile({ wire, source, meter, chunk, signal }, offset) {
  const breath = new FileBreath();
  const block = Math.ceil(FILE_BLOCK / chunk) * chunk;
  let reading = source.read(offset, block);
  while (offset < source.size) {
    const data = await abortable(reading, signal);
    const next = offset + data.length;
    reading = source.read(next, block);
    reading.catch(() => {}); // told when its turn comes
    for (let at = 0; at < data.length; at += chunk) {
      const piece = data.subarray(at, at + chunk);
      await wire.send(piece, { signal });
      offset += piece.length;
      meter.at(offset);
      await breath.pause();
      signal.throwIfAborted();
    }
  }
}
