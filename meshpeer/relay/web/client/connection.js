// One RTCPeerConnection with the message channel and plain channels: the same as meshpeer's
// rtc/connection.py, behind the same calls as rtc/base.py.
//
// What browsers don't have is made up for here. They send no check (RFC 7675) when asked to, so a
// ping is a frame on the message channel; what waits there, or a path that loses packets, delays it.
// So when a ping is due and the one before is not answered, their own checks are asked for in the
// statistics: they go on all the time, whatever happens above them.

import {
  ChannelClosed,
  ConnectionFailed,
  MessageTooLarge,
  ProtocolError,
  UsageError,
  decodeFrame,
  encodeFrame,
  repr,
} from "./codec.js";

/** @import { IceCandidate } from "./codec.js" */
/** @import { CandidateInfo, CandidatePair } from "./link.js" */
/** @import { IceServer } from "./node.js" */
/** @import { IceServerReport } from "./shell.js" */

/**
 * Bytes in the buffer of the message channel at which `bufferLow` is told. So little, because what is
 * in there can't be overtaken.
 */
export const LOW_BUFFER = 64 * 1024;

// The message channel is agreed on beforehand ("negotiated"), so it opens with SCTP itself and not a
// round trip later (RFC 8832 is what it saves).
const MESSAGE_CHANNEL = "meshpeer";
const MESSAGE_CHANNEL_ID = 0;
/** Nonces of ping frames from here on are a connection's. The shell's are from 2**31 on, a few. */
const CHECKS = 2 ** 48;
const FIRST_OF_PONG = encodeFrame({ kind: "Pong", nonce: 0 })[0];
/** Seconds after which a ping that is not answered is no reason not to send another. */
const CHECK_AGAIN = 0.9;
/** Seconds that a look into the statistics is compared with the one before, at most. */
const LOOK_BACK = 2.5;
/** Seconds to the next look: after the first, and as long as no ping would be answered soon. */
const LOOK_AGAIN = 0.5;
const LOOK_ON = 1;
/** Seconds between two `heard`. */
const HEARD_EVERY = 0.1;
/** Bytes that the other side must take at once, as every endpoint does (RFC 8841). */
const MIN_MESSAGE_SIZE = 65_536;
/** Seconds between two looks whether a browser that does not say so has moved to another pair. */
const LOOK_WHETHER_MOVED = 5;
/** Seconds for which the pair of a restart is looked for in the statistics, and between two looks. */
const LOOK_FOR_PAIR = 10;
const LOOK_FOR_PAIR_EVERY = 0.1;
/** Candidates whose servers are remembered. */
const MAX_SERVED = 256;
const ICE_ORDER = ["new", "gathering", "checking", "connected"];

/**
 * @typedef {"found" | "timed out" | "refused" | "wrong credentials" | "untrusted certificate"
 *   | "name not found" | "failed"} IceServerOutcome
 */

/**
 * What a connection tells. Called from events, never from inside a call to it.
 * - connectionOpened: the message channel is open
 * - connectionLost: the connection is over, without `close` having been called
 * - frameReceived: a frame arrived on the message channel
 * - bufferLow: the message channel's buffer has fallen to `LOW_BUFFER`
 * - channelOpened: the other side opened a plain data channel; who wants to hear all of it listens
 *   before this returns
 * - iceStateChanged: how far ICE has come: `gathering`, `checking` or `connected`. A restart does not
 *   begin it anew. That a path fell silent, or that ICE failed, the link says.
 * - iceServers: the STUN and TURN servers to ask, read when a generation begins to gather
 * - iceTransportPolicy: `relay` to use nothing but TURN
 * - candidatesFound: local candidates that the description of this generation did not have; `end`:
 *   these are the last
 * - serverReported: what came of asking a STUN or TURN server
 * - pairSelected: data goes over this pair from now on. The first time for a generation it has taken
 *   over; told again when its pair changes, or becomes known better.
 * - heard: something of the other side arrived that is no frame; at most ten times a second.
 *   `answered`: it was a check, and was answered, so the other side hears of us as well.
 * - ponged: the answer to `ping` arrived
 * - pathLost: what the selected pair goes over has ended; the connection waits for another generation
 * @typedef {object} ConnectionObserver
 * @property {() => void} connectionOpened
 * @property {(reason: string) => void} connectionLost
 * @property {(data: Uint8Array) => void} frameReceived
 * @property {() => void} bufferLow
 * @property {(channel: PlainChannel) => void} channelOpened
 * @property {(state: string) => void} iceStateChanged
 * @property {() => readonly IceServer[]} iceServers
 * @property {"all" | "relay"} [iceTransportPolicy]
 * @property {(generation: number, candidates: IceCandidate[], end: boolean) => void} candidatesFound
 * @property {(report: IceServerReport) => void} serverReported
 * @property {(generation: number, pair: CandidatePair) => void} pairSelected
 * @property {(answered: boolean) => void} heard
 * @property {(nonce: number) => void} ponged
 * @property {(reason: string) => void} pathLost
 */

/**
 * What a listener of a plain channel is told; `onLow` when its buffer falls to `low` bytes.
 * @typedef {object} RawListener
 * @property {() => void} onOpen
 * @property {(data: string | Uint8Array) => void} onMessage
 * @property {() => void} onLow
 * @property {() => void} onClose
 * @property {number} low
 */

/** A plain data channel (W3C WebRTC, RTCDataChannel). */
export class PlainChannel {
  #channel;
  #heard;
  /** @type {RawListener | null} */
  #listener = null;
  #ended = false;

  /**
   * @param {RTCDataChannel} channel
   * @param {() => void} heard Called for what arrives.
   */
  constructor(channel, heard) {
    this.#channel = channel;
    this.#heard = heard;
    channel.binaryType = "arraybuffer";
  }

  get label() {
    return this.#channel.label;
  }

  /** `connecting`, `open`, `closing` or `closed`. */
  get state() {
    return this.#ended ? "closed" : this.#channel.readyState;
  }

  get bufferedAmount() {
    return this.#channel.bufferedAmount;
  }

  /** Whether it may lose messages (maxRetransmits or maxPacketLifeTime is set). */
  get lossy() {
    return this.#channel.maxRetransmits !== null || this.#channel.maxPacketLifeTime !== null;
  }

  /**
   * Throws `ChannelClosed` when it is not open, `MessageTooLarge` for more than the other side takes.
   * @param {string | Uint8Array} data
   */
  send(data) {
    if (this.state !== "open") {
      throw new ChannelClosed(`channel ${repr(this.label)} is ${this.state}`, { reason: this.state });
    }
    try {
      this.#channel.send(/** @type {any} */ (data));
    } catch (error) {
      if (error instanceof TypeError) {
        throw new MessageTooLarge(`channel ${repr(this.label)} can't send so much at once: ${describeError(error)}`);
      }
      throw new ConnectionFailed(`channel ${repr(this.label)} can't send: ${describeError(error)}`);
    }
  }

  close() {
    this.#channel.close();
  }

  /** @param {RawListener} listener */
  listen(listener) {
    const channel = this.#channel;
    this.#listener = listener;
    channel.bufferedAmountLowThreshold = listener.low;
    channel.onopen = () => listener.onOpen();
    channel.onmessage = ({ data }) => {
      this.#heard();
      listener.onMessage(typeof data === "string" ? data : new Uint8Array(data));
    };
    channel.onbufferedamountlow = () => listener.onLow();
    channel.onclose = () => this.end();
  }

  /** It is closed, with its connection maybe, of which browsers say nothing. */
  end() {
    if (this.#ended) return;
    this.#ended = true;
    const channel = this.#channel;
    channel.onopen = channel.onmessage = channel.onbufferedamountlow = channel.onclose = null;
    this.#listener?.onClose();
  }
}

/**
 * A connection. Calls are made one after another; only `close` may come while one is under way.
 *
 * The promises reject with `ProtocolError` for what the other side sent and `ConnectionFailed` for
 * everything else.
 *
 * Generation 0 is the first negotiation; each higher number is an ICE restart (RFC 8445, section 9)
 * under the same DTLS association. A restart that does not succeed changes nothing: what carries data
 * goes on carrying it. A later restart replaces one that has not taken over.
 */
export class Connection {
  #observer;
  /** @type {RTCPeerConnection | null} */
  #pc = null;
  /** @type {RTCDataChannel | null} */
  #channel = null;
  #closed = false;
  #lost = false;
  /** Called when it is closed: what a closed RTCPeerConnection was asked for never settles.
      @type {Set<(error: Error) => void>} */
  #waiting = new Set();
  #iceState = "new";
  /** Plain channels that are not closed. @type {Set<PlainChannel>} */
  #channels = new Set();

  /** The latest remote description. @type {SdpSection | null} */
  #remote = null;
  /** The generation that it is of. */
  #remoteGeneration = -1;
  /** What both were before an offer that has no answer.
      @type {{remote: SdpSection | null, generation: number}} */
  #agreed = { remote: null, generation: -1 };
  /** The generation that we described last, that of the latest candidate of ours, and since when it
      gathers. */
  #described = -1;
  #found = -1;
  /** The last of which the end was told. */
  #ended = -1;
  #gathersSince = 0;
  /** Generations by the ufrag of our side, from the one that carries data on. @type {Map<string, number>} */
  #generations = new Map();
  /** The one that carries data. */
  #carries = -1;
  /** Candidates of a generation that waits for its answer.
      @type {{generation: number, candidates: IceCandidate[], end: boolean} | null} */
  #early = null;
  /** URLs of the servers of our candidates, by type, address and port. @type {Map<string, string>} */
  #servers = new Map();
  /** @type {RTCIceTransport | null} */
  #transport = null;
  /** What `pairSelected` was told last, and the id of that pair where the statistics had to tell. */
  #toldPair = "";
  #foundPair = "";
  /** When its statistics were last asked for the pair. */
  #lookedAt = -Infinity;
  /** The ids of the pairs that were there before the latest restart. @type {Set<string>} */
  #oldPairs = new Set();

  #heardAt = -Infinity;
  /** The ping that is not answered: its number and when it was sent. */
  #asked = { nonce: -1, at: -Infinity };
  /** What the statistics said of the checks so far. @type {CheckCounts | null} */
  #checks = null;
  /** Whether they are being asked for. */
  #looking = false;
  /** When they are asked for again. @type {ReturnType<typeof setTimeout> | undefined} */
  #lookTimer;

  /** @param {ConnectionObserver} observer */
  constructor(observer) {
    this.#observer = observer;
  }

  // --- negotiation ---

  /**
   * The local offer; with a generation above 0 that of an ICE restart. Candidates follow by
   * `candidatesFound`.
   * @param {number} generation
   * @returns {Promise<string>}
   */
  async createOffer(generation) {
    if (generation && this.#remote === null) throw noConnection();
    return await this.#make(generation, "offer", async (pc) => {
      if (generation) await this.#rollBack(pc);
      return await pc.createOffer({ iceRestart: generation > 0 });
    });
  }

  /**
   * The local answer to a remote offer, likewise. A restart of our own that waits for its answer is
   * given up for it.
   * @param {number} generation
   * @param {string} sdp
   * @returns {Promise<string>}
   */
  async acceptOffer(generation, sdp) {
    const section = parseSdp(sdp);
    if (generation) this.#checkRestart(section);
    return await this.#make(generation, "answer", async (pc) => {
      if (generation) await this.#rollBack(pc);
      await this.#setRemote(pc, generation, "offer", sdp, section);
      return await pc.createAnswer();
    });
  }

  /**
   * Take the answer to the latest `createOffer`; of another generation, it is ignored.
   * @param {number} generation
   * @param {string} sdp
   */
  async acceptAnswer(generation, sdp) {
    const section = parseSdp(sdp);
    if (generation) {
      if (generation !== this.#described) return;
      this.#checkRestart(section);
    }
    await this.#setRemote(this.#current(), generation, "answer", sdp, section);
  }

  /**
   * Take remote candidates. Those of a generation that is over are ignored, and so are those that name
   * another `ufrag`; the good ones count even if others are bad.
   * @param {number} generation
   * @param {readonly IceCandidate[]} candidates
   * @param {boolean} end
   */
  async addCandidates(generation, candidates, end) {
    if (this.#pc === null) return;
    if (generation > this.#remoteGeneration) {
      // They overtook the answer, without which the browser has nothing to add them to.
      if (generation !== this.#described) return;
      const early = this.#early?.generation === generation ? this.#early : { generation, candidates: [], end: false };
      this.#early = { generation, candidates: [...early.candidates, ...candidates], end: early.end || end };
      return;
    }
    if (generation < this.#remoteGeneration) return;
    await this.#add(candidates, end);
  }

  /**
   * @param {readonly IceCandidate[]} candidates
   * @param {boolean} end
   */
  async #add(candidates, end) {
    const pc = this.#current();
    const remote = /** @type {SdpSection} */ (this.#remote);
    /** @type {string[]} */
    const bad = [];
    for (const { candidate: line, sdpMid: mid, sdpMLineIndex: index } of candidates) {
      if (!line) {
        end = true; // RFC 8838, section 8.1, by way of W3C: an empty one says "no more"
        continue;
      }
      const named = ufragOf(line);
      if (named !== null && named !== remote.ufrag) continue;
      const fits = mid === null ? index === null || index === 0 : mid === remote.mid;
      let why = fits ? misfitOfCandidate(line) : `no section ${mid ?? index}`;
      if (why === null) {
        const candidate = line.startsWith("candidate:") ? line : `candidate:${line}`;
        try {
          await this.#unlessClosed(pc.addIceCandidate({ candidate, sdpMid: mid, sdpMLineIndex: index ?? 0 }));
        } catch (error) {
          if (this.#closed) throw error;
          why = describeError(error);
        }
      }
      if (why !== null) bad.push(`${repr(line.slice(0, 80))} (${why})`);
    }
    if (end) await this.#unlessClosed(pc.addIceCandidate()).catch(() => {}); // it only hastens ICE's failure
    if (bad.length) {
      throw new ProtocolError(`${bad.length} of ${candidates.length} ICE candidates can't be used, first ${bad[0]}`, {
        code: "bad_candidate",
        field: "$.candidates",
      });
    }
  }

  /**
   * @param {number} generation
   * @param {"offer" | "answer"} kind
   * @param {(pc: RTCPeerConnection) => Promise<RTCSessionDescriptionInit>} create
   */
  async #make(generation, kind, create) {
    if (this.#closed) throw closedHere();
    const pc = generation ? this.#current() : this.#open();
    this.#configure(pc);
    this.#iceIs("gathering");
    try {
      if (generation && !this.#saysPair) {
        const all = await this.#unlessClosed(pc.getStats());
        this.#oldPairs.clear();
        all.forEach((each, id) => each.type === "candidate-pair" && this.#oldPairs.add(id));
      }
      const description = await this.#unlessClosed(create(pc));
      const sdp = description.sdp ?? "";
      this.#described = generation;
      this.#gathersSince = connectionNow();
      // Before it gathers: what it finds at once is known then.
      this.#generations.set(/^a=ice-ufrag:(.*?)\r?$/m.exec(sdp)?.[1] ?? "", generation);
      await this.#unlessClosed(pc.setLocalDescription(description));
      this.#watchTransport();
      if (kind === "answer") {
        this.#iceIs("checking");
        this.#agreedOn(generation);
        await this.#addEarly();
      }
      return sdp;
    } catch (error) {
      if (this.#closed) throw closedHere();
      if (generation) await this.#rollBack(pc).catch(() => {});
      if (error instanceof ProtocolError || error instanceof ConnectionFailed) throw error;
      throw new ConnectionFailed(`no ${kind} could be made: ${describeError(error)}`);
    }
  }

  /**
   * Take back an offer, of either side, that has no answer (RFC 8829, section 4.1.10.2).
   * @param {RTCPeerConnection} pc
   */
  async #rollBack(pc) {
    if (pc.signalingState === "have-local-offer") {
      await this.#unlessClosed(pc.setLocalDescription({ type: "rollback" }));
    } else if (pc.signalingState === "have-remote-offer") {
      await this.#unlessClosed(pc.setRemoteDescription({ type: "rollback", sdp: "" }));
      this.#remote = this.#agreed.remote;
      this.#remoteGeneration = this.#agreed.generation;
    }
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {number} generation
   * @param {"offer" | "answer"} type
   * @param {string} sdp
   * @param {SdpSection} section
   */
  async #setRemote(pc, generation, type, sdp, section) {
    try {
      await this.#unlessClosed(pc.setRemoteDescription({ type, sdp }));
    } catch (error) {
      if (this.#closed) throw closedHere();
      if (error instanceof DOMException && error.name === "InvalidStateError") {
        throw new ConnectionFailed(`the ${type} does not fit the state: ${describeError(error)}`);
      }
      throw badSdp(`the ${type} can't be used: ${describeError(error)}`);
    }
    if (type === "offer") this.#agreed = { remote: this.#remote, generation: this.#remoteGeneration };
    this.#remote = section;
    this.#remoteGeneration = generation;
    if (type === "answer") this.#iceIs("checking");
    this.#watchTransport();
    if (type === "answer") {
      this.#agreedOn(generation);
      await this.#addEarly();
    }
  }

  async #addEarly() {
    const early = this.#early;
    this.#early = null;
    if (early === null || early.generation !== this.#remoteGeneration) return;
    try {
      await this.#add(early.candidates, early.end);
    } catch (error) {
      // The description is as good as it was.
      if (!(error instanceof ProtocolError)) throw error;
    }
  }

  /**
   * Refuse what is no restart of this connection (RFC 8445, section 9; RFC 8842, 5.4).
   * @param {SdpSection} section
   */
  #checkRestart(section) {
    const remote = this.#remote;
    if (remote === null) throw noConnection();
    if (section.ufrag === remote.ufrag && section.pwd === remote.pwd) {
      throw new ProtocolError("an ICE restart with the credentials unchanged (a=ice-ufrag and a=ice-pwd)", {
        code: "unchanged_credentials",
        field: "$.sdp",
      });
    }
    if (section.fingerprints.join() !== remote.fingerprints.join()) {
      throw new ProtocolError(
        "an ICE restart with another DTLS fingerprint (a=fingerprint): that is another " +
          "connection, and needs an offer of a new epoch",
        { code: "changed_fingerprint", field: "$.sdp" },
      );
    }
  }

  /**
   * @template T
   * @param {Promise<T>} promise
   * @returns {Promise<T>}
   */
  async #unlessClosed(promise) {
    /** @type {(error: Error) => void} */
    let reject = () => {};
    // One each: what a promise that lives as long as the connection is raced with is kept by it.
    const end = /** @type {Promise<never>} */ (new Promise((_, fail) => (reject = fail)));
    if (this.#closed) reject(closedHere());
    this.#waiting.add(reject);
    try {
      return await Promise.race([promise, end]);
    } finally {
      this.#waiting.delete(reject);
    }
  }

  // --- the RTCPeerConnection ---

  #current() {
    if (this.#closed) throw closedHere();
    if (this.#pc === null) throw noConnection();
    return this.#pc;
  }

  #open() {
    if (this.#pc !== null) throw new ConnectionFailed("this connection was begun already");
    // Looked up each time: what blocks it may go, and come.
    const Pc = globalThis.RTCPeerConnection;
    if (typeof Pc !== "function") {
      throw new ConnectionFailed("this browser has no RTCPeerConnection, or something blocks it");
    }
    try {
      const pc = (this.#pc = new Pc({ iceTransportPolicy: this.#policy, bundlePolicy: "max-bundle" }));
      const options = { negotiated: true, id: MESSAGE_CHANNEL_ID };
      const channel = (this.#channel = pc.createDataChannel(MESSAGE_CHANNEL, options));
      this.#listen(pc, channel);
      return pc;
    } catch (error) {
      this.#pc?.close();
      this.#pc = this.#channel = null;
      throw new ConnectionFailed(`no RTCPeerConnection can be made: ${describeError(error)}`);
    }
  }

  get #policy() {
    return this.#observer.iceTransportPolicy ?? "all";
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {RTCDataChannel} channel
   */
  #listen(pc, channel) {
    pc.onicecandidate = (event) => this.#candidate(event);
    pc.onicecandidateerror = (event) => this.#serverFailed(event);
    pc.ondatachannel = ({ channel: opened }) => this.#observer.channelOpened(this.#plain(opened));
    pc.oniceconnectionstatechange = () => {
      this.#watchTransport();
      if (pc.iceConnectionState === "failed") this.#observer.pathLost("ICE failed");
      else if (pc.iceConnectionState === "connected" && !this.#saysPair) this.#findPair().catch(() => {});
    };
    pc.onconnectionstatechange = () => {
      // "failed" is said when ICE has, too, which a restart may mend.
      const dtls = pc.sctp?.transport.state;
      if (dtls === "failed" || dtls === "closed") this.#isLost(`the connection ${dtls}`);
    };
    channel.binaryType = "arraybuffer";
    channel.bufferedAmountLowThreshold = LOW_BUFFER;
    channel.onopen = () => this.#opened();
    channel.onclose = () => this.#isLost("the message channel closed");
    channel.onbufferedamountlow = () => this.#observer.bufferLow();
    channel.onmessage = ({ data }) => {
      const frame = typeof data === "string" ? new TextEncoder().encode(data) : new Uint8Array(data);
      if (frame[0] === FIRST_OF_PONG && this.#ponged(frame)) return;
      this.#observer.frameReceived(frame);
    };
  }

  /**
   * What `iceServers` says, as far as the browser takes it.
   * @param {RTCPeerConnection} pc
   */
  #configure(pc) {
    const set = (/** @type {readonly IceServer[]} */ servers) =>
      pc.setConfiguration({
        iceServers: servers.map(rtcIceServer),
        iceTransportPolicy: this.#policy,
        bundlePolicy: "max-bundle",
      });
    const servers = this.#observer.iceServers();
    try {
      set(servers);
    } catch {
      // The signalling service named what can't be used: the others still count.
      const usable = servers.filter((server) => {
        try {
          set([server]);
          return true;
        } catch (error) {
          const url = server.urls.join(", ");
          queueMicrotask(() => this.#reported(url, "failed", describeError(error), null));
          return false;
        }
      });
      set(usable);
    }
  }

  /** @param {RTCPeerConnectionIceEvent} event */
  #candidate({ candidate }) {
    if (this.#closed) return;
    if (candidate === null || !candidate.candidate) {
      // Of the generation before, maybe: it does not say. Without an end the other side waits a little.
      if (this.#found === this.#described && this.#ended !== this.#described) {
        this.#ended = this.#described;
        this.#observer.candidatesFound(this.#described, [], true);
      }
      return;
    }
    const ufrag = candidate.usernameFragment ?? ufragOf(candidate.candidate) ?? "";
    const server = /** @type {{url?: string | null}} */ (candidate).url;
    if (server) {
      this.#servers.set(endKey(candidate), server);
      if (this.#servers.size > MAX_SERVED) this.#servers.delete([...this.#servers.keys()][0]);
      const address = `${candidate.address ?? "?"}:${candidate.port ?? "?"}`;
      this.#reported(server, "found", "", address);
    }
    const found = /** @type {const} */ ({
      kind: "IceCandidate",
      candidate: candidate.candidate,
      sdpMid: candidate.sdpMid,
      sdpMLineIndex: candidate.sdpMLineIndex,
    });
    const generation = ufrag ? this.#generations.get(ufrag) : this.#described;
    if (generation === undefined) return; // of one that is over
    this.#found = generation;
    this.#observer.candidatesFound(this.#found, [found], false);
  }

  /** @param {RTCPeerConnectionIceErrorEvent} event */
  #serverFailed({ url, errorCode, errorText }) {
    if (this.#closed || !url) return;
    /** @type {IceServerOutcome} */
    let outcome = "refused";
    if (errorCode === 401) outcome = "wrong credentials";
    else if (errorCode >= 700) outcome = /lookup|resolve|name/i.test(errorText) ? "name not found" : "timed out";
    this.#reported(url, outcome, `${errorCode} ${errorText}`.trim(), null);
  }

  /**
   * @param {string} url
   * @param {IceServerOutcome} outcome
   * @param {string} detail
   * @param {string | null} address
   */
  #reported(url, outcome, detail, address) {
    if (this.#closed) return;
    const took = Math.max(0, connectionNow() - this.#gathersSince);
    this.#observer.serverReported({ kind: "IceServerReport", url, outcome, detail, address, took });
  }

  // --- the selected pair ---

  /** It is there from the first description on, or a little later. */
  #watchTransport() {
    const transport = this.#pc?.sctp?.transport.iceTransport ?? null;
    if (transport === this.#transport || transport === null) return;
    if (this.#transport) this.#transport.onselectedcandidatepairchange = null;
    this.#transport = transport;
    transport.onselectedcandidatepairchange = () => this.#pairChanged();
    this.#pairChanged();
  }

  /** Whether the browser says which pair was selected. Firefox does not; its statistics do. */
  get #saysPair() {
    return Boolean(this.#transport?.getSelectedCandidatePair);
  }

  /**
   * Both descriptions of a generation are there. The pair of the first is looked for when it is open.
   * @param {number} generation
   */
  #agreedOn(generation) {
    if (generation && !this.#saysPair) void this.#lookForPair();
  }

  /** Whether it is known. */
  #pairChanged() {
    if (this.#closed) return false;
    const pair = this.#transport?.getSelectedCandidatePair?.();
    if (!pair?.local || !pair.remote) return false;
    const { local, remote } = pair;
    const ufrag = local.usernameFragment ?? ufragOf(local.candidate);
    this.#selected(this.#generationOf(ufrag), {
      kind: "CandidatePair",
      local: this.#endOf(local, this.#servers.get(endKey(local))),
      remote: this.#endOf(remote),
    });
    return true;
  }

  /**
   * That of a pair, by the ufrag of our side where the browser tells it.
   * @param {string | null | undefined} ufrag
   */
  #generationOf(ufrag) {
    const known = ufrag ? this.#generations.get(ufrag) : this.#remoteGeneration;
    // One that is over and came back carries data as the one after it did.
    return known ?? (this.#carries < 0 ? this.#remoteGeneration : this.#carries);
  }

  async #findPair() {
    this.#lookedAt = connectionNow();
    this.#pairFound(selectedIn(await /** @type {RTCPeerConnection} */ (this.#pc).getStats()));
  }

  /** @param {SelectedPair} found */
  #pairFound({ pair, local, remote }) {
    if (this.#closed || !pair || !local || !remote) return;
    const ufrag = local.usernameFragment;
    if (!ufrag && pair.id === this.#foundPair) return; // it is still that of the generation before
    // Without a name, a pair that is older than the latest restart is not that's.
    const isOld = !ufrag && this.#carries >= 0 && this.#oldPairs.has(pair.id);
    this.#foundPair = pair.id;
    this.#selected(isOld ? this.#carries : this.#generationOf(ufrag), {
      kind: "CandidatePair",
      local: this.#endOf({ ...local, type: local.candidateType }, local.url),
      remote: this.#endOf({ ...remote, type: remote.candidateType }),
    });
  }

  /** Looks for the pair of the newest generation, for a while. */
  async #lookForPair() {
    const generation = this.#remoteGeneration;
    for (const until = connectionNow() + LOOK_FOR_PAIR; connectionNow() < until;) {
      await this.#findPair().catch(() => {});
      if (this.#carries >= generation) return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * LOOK_FOR_PAIR_EVERY));
      if (this.#closed || this.#remoteGeneration !== generation) return;
    }
  }

  /**
   * @param {{type?: string | null, address?: string | null, port?: number | null}} candidate
   * @param {string | null} [server]
   * @returns {CandidateInfo}
   */
  #endOf({ type, address, port }, server = null) {
    // An address that the browser keeps to itself is told as what it is.
    return {
      kind: "CandidateInfo",
      type: type ?? "host",
      address: address || "hidden",
      port: port ?? 0,
      server: type === "relay" ? server : null,
    };
  }

  /**
   * @param {number} generation
   * @param {CandidatePair} pair
   */
  #selected(generation, pair) {
    const told = JSON.stringify([generation, pair]);
    if (told === this.#toldPair) return;
    this.#toldPair = told;
    this.#carries = generation;
    for (const [ufrag, each] of this.#generations) if (each < generation) this.#generations.delete(ufrag);
    this.#asked.at = -Infinity; // it may have been lost with the pair before
    // A browser that does not choose the pair moves to it only when something arrives over it.
    this.sendFrame(encodeFrame({ kind: "Ping", nonce: 0 }));
    // It is found in calls to us as well.
    queueMicrotask(() => {
      if (this.#closed) return;
      this.#iceIs("connected");
      this.#observer.pairSelected(generation, pair);
    });
  }

  /** @param {string} state */
  #iceIs(state) {
    // A restart does not begin anew: what carries data goes on.
    if (ICE_ORDER.indexOf(state) <= ICE_ORDER.indexOf(this.#iceState)) return;
    this.#iceState = state;
    queueMicrotask(() => {
      if (!this.#closed) this.#observer.iceStateChanged(state);
    });
  }

  // --- signs of life ---

  /**
   * Ask the other side whether it is there; `ponged` when it answers, `heard` if something else shows
   * that it is.
   * @param {number} nonce
   */
  ping(nonce) {
    const channel = this.#channel;
    if (channel?.readyState !== "open") return;
    const at = connectionNow();
    const tellsLittle = this.#pingTellsLittle;
    // Not behind much, nor behind another one: over a dead path they would pile up.
    if (at - this.#asked.at > CHECK_AGAIN && channel.bufferedAmount <= LOW_BUFFER) {
      this.#asked = { nonce, at };
      this.sendFrame(encodeFrame({ kind: "Ping", nonce: CHECKS + nonce }));
    }
    if (tellsLittle) void this.#look(nonce, at);
    // Nothing says that it has moved to another pair.
    if (!this.#saysPair && at - this.#lookedAt > LOOK_WHETHER_MOVED) this.#findPair().catch(() => {});
  }

  /** Whether one is not answered, or another one would wait behind much: for seconds, on a slow path. */
  get #pingTellsLittle() {
    return this.#asked.at !== -Infinity || this.bufferedAmount > LOW_BUFFER;
  }

  /**
   * What the browser's own checks found since it was looked for them.
   * @param {number} nonce
   * @param {number} asked when
   */
  async #look(nonce, asked) {
    const pc = this.#pc;
    if (pc === null || this.#looking) return;
    this.#looking = true;
    try {
      const selected = selectedIn(await pc.getStats());
      const { pair } = selected;
      if (this.#closed || !pair) return;
      if (!this.#saysPair && pair.id !== this.#foundPair) this.#pairFound(selected);
      const before = this.#checks;
      const found = (this.#checks = {
        id: /** @type {string} */ (pair.id),
        at: connectionNow(),
        heard: (pair.requestsReceived ?? 0) + (pair.responsesReceived ?? 0) + (pair.bytesReceived ?? 0),
        answers: pair.responsesReceived ?? 0,
      });
      // What was before says nothing of now.
      const isFirst = before === null || before.id !== found.id || found.at - before.at > LOOK_BACK;
      this.#lookAgain(nonce, asked, isFirst ? LOOK_AGAIN : LOOK_ON);
      if (isFirst || found.heard === before.heard) return;
      this.#observer.heard(true);
      if (found.answers === before.answers) return;
      // They measure the round trip, so it is told when an answer to the ping would have come.
      const left = (pair.currentRoundTripTime ?? 0) - (connectionNow() - asked);
      setTimeout(() => this.#closed || this.#observer.ponged(nonce), 1000 * Math.max(0, left));
    } catch {
      // It closes.
    } finally {
      this.#looking = false;
    }
  }

  /**
   * Frames that are put into the buffer put off the next ping, which would look as well.
   * @param {number} nonce
   * @param {number} asked
   * @param {number} after seconds
   */
  #lookAgain(nonce, asked, after) {
    clearTimeout(this.#lookTimer);
    this.#lookTimer = setTimeout(() => {
      if (!this.#closed && this.#pingTellsLittle) void this.#look(nonce, asked);
    }, 1000 * after);
  }

  /**
   * Whether this is the answer to a ping of ours, and no frame for others.
   * @param {Uint8Array} data
   */
  #ponged(data) {
    let frame;
    try {
      frame = decodeFrame(data);
    } catch {
      return false; // who takes frames refuses it
    }
    if (frame.kind !== "Pong" || frame.nonce < CHECKS) return false;
    const nonce = frame.nonce - CHECKS;
    if (nonce !== this.#asked.nonce) {
      this.#heard();
      return true;
    }
    this.#asked.at = -Infinity;
    this.#checks = null;
    this.#observer.heard(true);
    this.#observer.ponged(nonce);
    return true;
  }

  #heard() {
    const at = connectionNow();
    if (this.#closed || at - this.#heardAt < HEARD_EVERY) return;
    this.#heardAt = at;
    this.#observer.heard(false);
  }

  // --- data ---

  /** Bytes that wait in the message channel. */
  get bufferedAmount() {
    return this.#channel?.bufferedAmount ?? 0;
  }

  /**
   * Put a frame into the buffer of the message channel; dropped when it is not open.
   * @param {Uint8Array} data
   */
  sendFrame(data) {
    const channel = this.#channel;
    if (channel?.readyState !== "open") return;
    try {
      channel.send(/** @type {Uint8Array<ArrayBuffer>} */ (data));
    } catch (error) {
      // A frame is missing now, and what follows it would not be understood.
      const reason = `the message channel can't send: ${describeError(error)}`;
      queueMicrotask(() => this.#isLost(reason));
    }
  }

  /**
   * Open a plain data channel (W3C WebRTC, createDataChannel).
   * @param {string} label
   * @param {{ordered?: boolean, maxRetransmits?: number | null, maxPacketLifeTime?: number | null}} [options]
   * @returns {PlainChannel}
   */
  openChannel(label, { ordered = true, maxRetransmits = null, maxPacketLifeTime = null } = {}) {
    const pc = this.#current();
    /** @type {RTCDataChannelInit} */
    const init = { ordered };
    if (maxRetransmits !== null) init.maxRetransmits = maxRetransmits;
    if (maxPacketLifeTime !== null) init.maxPacketLifeTime = maxPacketLifeTime;
    try {
      return this.#plain(pc.createDataChannel(label, init));
    } catch (error) {
      throw new UsageError(`channel ${repr(label)} can't be opened: ${describeError(error)}`);
    }
  }

  /** @param {RTCDataChannel} channel */
  #plain(channel) {
    const raw = new PlainChannel(channel, () => this.#heard());
    this.#channels.add(raw);
    channel.addEventListener("close", () => this.#channels.delete(raw), { once: true });
    return raw;
  }

  #opened() {
    if (this.#closed) return;
    this.#watchTransport();
    if (!this.#toldPair && !this.#pairChanged()) void this.#lookForPair();
    // Behind the pair, where that is known, and before what arrives.
    queueMicrotask(() => this.#closed || this.#observer.connectionOpened());
  }

  // --- what is known of it ---

  /**
   * How it stands, for people who look for a fault: plain JSON. Empty before it was begun.
   * @returns {Promise<object>}
   */
  async stats() {
    const pc = this.#pc;
    if (pc === null) return {};
    /** @type {Map<string, any>} */
    const all = new Map();
    try {
      (await this.#unlessClosed(pc.getStats())).forEach((each, id) => all.set(id, each));
    } catch {
      // What the states say is told all the same.
    }
    const { pair: selected } = selectedIn(all);
    const end = (/** @type {any} */ each) => ({
      type: each?.candidateType ?? null,
      protocol: each?.protocol ?? null,
      address: each?.address ?? null,
      port: each?.port ?? null,
      priority: each?.priority ?? null,
      url: each?.url ?? null,
      relayProtocol: each?.relayProtocol ?? null,
      usernameFragment: each?.usernameFragment ?? null,
      generation: this.#generations.get(each?.usernameFragment ?? "") ?? null,
    });
    const pairOf = (/** @type {any} */ each) => ({
      selected: each === selected,
      state: each.state ?? null,
      nominated: each.nominated ?? null,
      local: end(all.get(each.localCandidateId)),
      remote: end(all.get(each.remoteCandidateId)),
      bytesSent: each.bytesSent ?? 0,
      bytesReceived: each.bytesReceived ?? 0,
      currentRoundTripTime: each.currentRoundTripTime ?? null,
      requestsSent: each.requestsSent ?? null,
      requestsReceived: each.requestsReceived ?? null,
      responsesSent: each.responsesSent ?? null,
      responsesReceived: each.responsesReceived ?? null,
    });
    const of = (/** @type {string} */ type) => [...all.values()].filter((each) => each.type === type);
    return {
      connectionState: pc.connectionState,
      iceConnectionState: pc.iceConnectionState,
      iceGatheringState: pc.iceGatheringState,
      signalingState: pc.signalingState,
      dtlsState: pc.sctp?.transport.state ?? null,
      sctpState: pc.sctp?.state ?? null,
      iceRole: /** @type {{role?: string} | null} */ (this.#transport)?.role ?? null,
      channelState: this.#channel?.readyState ?? null,
      bufferedAmount: this.bufferedAmount,
      generation: { described: this.#described, remote: this.#remoteGeneration },
      selectedPair: selected ? pairOf(selected) : null,
      pairs: of("candidate-pair").map(pairOf),
      localCandidates: of("local-candidate").map(end),
      remoteCandidates: of("remote-candidate").map(end),
      bytesSent: selected?.bytesSent ?? 0,
      bytesReceived: selected?.bytesReceived ?? 0,
      roundTrip: selected?.currentRoundTripTime ?? null,
      channels: of("data-channel").map((each) => ({
        label: each.label ?? "",
        state: each.state ?? null,
        messagesSent: each.messagesSent ?? 0,
        messagesReceived: each.messagesReceived ?? 0,
        bytesSent: each.bytesSent ?? 0,
        bytesReceived: each.bytesReceived ?? 0,
      })),
    };
  }

  // --- the end ---

  /** @param {string} reason */
  #isLost(reason) {
    if (this.#closed || this.#lost) return;
    this.#lost = true;
    this.#observer.connectionLost(reason);
  }

  /**
   * Close the RTCPeerConnection, which tells the other side at once (DTLS close_notify). What is in the
   * buffer may be lost. It may be called more than once, and while another call is under way, which
   * then rejects.
   */
  async close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const reject of this.#waiting) reject(closedHere());
    clearTimeout(this.#lookTimer);
    const pc = this.#pc;
    const channel = this.#channel;
    if (this.#transport) this.#transport.onselectedcandidatepairchange = null;
    if (channel) channel.onopen = channel.onclose = channel.onmessage = channel.onbufferedamountlow = null;
    if (pc) {
      pc.onicecandidate = pc.onicecandidateerror = pc.ondatachannel = null;
      pc.oniceconnectionstatechange = pc.onconnectionstatechange = null;
      pc.close();
    }
    this.#early = null;
    const channels = [...this.#channels];
    this.#channels.clear();
    // Not from inside this call.
    await null;
    for (const each of channels) each.end();
  }
}

// --- session descriptions --------------------------------------------------------------------------

/**
 * The data channel section of a session description, as far as it is looked at.
 * @typedef {{ufrag: string, pwd: string, fingerprints: string[], mid: string}} SdpSection
 */

/**
 * Throws `ProtocolError` for what can't describe a data channel: before anything is changed for it.
 * @param {string} sdp
 * @returns {SdpSection}
 */
function parseSdp(sdp) {
  const parts = sdp.split(/^(?=m=)/m);
  const kinds = parts.slice(1).map((part) => /^m=(\S*)/.exec(part)?.[1] ?? "");
  if (kinds.length !== 1 || kinds[0] !== "application") {
    const names = kinds.map(repr).join(", ");
    throw badSdp(`the session description has the sections [${names}], expected one data channel section`);
  }
  const [session, media] = parts.map(attributesOf);
  const last = (/** @type {string} */ name) => (media.get(name) ?? session.get(name))?.at(-1) ?? "";
  const fingerprints = [...(session.get("fingerprint") ?? []), ...(media.get("fingerprint") ?? [])];
  if (!fingerprints.length || !["actpass", "active", "passive"].includes(last("setup"))) {
    throw badSdp("the session description has no usable a=fingerprint and a=setup");
  }
  if (!/^\d+$/.test(media.get("sctp-port")?.at(-1) ?? "")) {
    throw badSdp("the session description has no a=sctp-port");
  }
  const [ufrag, pwd, mid] = [last("ice-ufrag"), last("ice-pwd"), media.get("mid")?.at(-1) ?? ""];
  if (!(ufrag.length >= 4 && ufrag.length <= 256 && pwd.length >= 22 && pwd.length <= 256)) {
    throw badSdp(
      "the session description has no usable ICE credentials: a=ice-ufrag has 4 to 256 " +
        "characters, a=ice-pwd 22 to 256 (RFC 8839, section 5.4)",
    );
  }
  for (const group of session.get("group") ?? []) {
    const [semantic, ...items] = group.trim().split(/\s+/);
    if (semantic === "BUNDLE" && !(items.length === 1 && items[0] === mid)) {
      throw badSdp("the session description bundles sections that it does not have");
    }
  }
  const size = media.get("max-message-size")?.at(-1);
  if (size !== undefined) {
    if (!/^\d+$/.test(size)) throw badSdp(`the session description does not parse: a=max-message-size:${size}`);
    if (Number(size) > 0 && Number(size) < MIN_MESSAGE_SIZE) {
      throw badSdp(`a=max-message-size is ${size}, and must be 0 (any) or at least ${MIN_MESSAGE_SIZE}`);
    }
  }
  for (const candidate of media.get("candidate") ?? []) {
    const why = misfitOfCandidate(candidate);
    if (why !== null) throw badSdp(`the session description has a candidate that can't be used: ${why}`);
  }
  return { ufrag, pwd, fingerprints, mid };
}

/**
 * The attributes of one section, by name; those without a value have an empty one.
 * @param {string} part
 */
function attributesOf(part) {
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const [, name, value = ""] of part.matchAll(/^a=([^:\r\n]+)(?::([^\r\n]*))?/gm)) {
    const values = found.get(name);
    if (values) values.push(value);
    else found.set(name, [value]);
  }
  return found;
}

/**
 * Why a candidate can't be used, or null. What is only of no use here is not unfit.
 * @param {string} line
 */
function misfitOfCandidate(line) {
  const fields = line
    .replace(/^candidate:/, "")
    .trim()
    .split(/\s+/);
  const isNumber = (/** @type {string} */ text) => /^\d+$/.test(text);
  if (fields.length < 8 || ![fields[1], fields[3], fields[5]].every(isNumber)) return "it does not parse";
  return Number(fields[5]) > 65535 ? `port ${fields[5]}` : null;
}

/**
 * The ICE username that a candidate says it belongs to.
 * @param {string} line
 */
function ufragOf(line) {
  return /\bufrag (\S+)/.exec(line)?.[1] ?? null;
}

// --- what browsers say -----------------------------------------------------------------------------

/** @typedef {{id: string, at: number, heard: number, answers: number}} CheckCounts */

/** @typedef {{pair: any, local: any, remote: any}} SelectedPair */

/**
 * The selected candidate pair in the statistics, with its two ends.
 * @param {{forEach(callback: (each: any, id: string) => void): void, get(id: string): any}} all
 * @returns {SelectedPair}
 */
function selectedIn(all) {
  /** @type {any} */
  let pair = null;
  all.forEach((each) => {
    if (each.type === "transport" && each.selectedCandidatePairId) pair = all.get(each.selectedCandidatePairId) ?? pair;
    else if (each.type === "candidate-pair" && each.selected && pair === null) pair = each; // Firefox
  });
  return {
    pair,
    local: pair ? all.get(pair.localCandidateId) : null,
    remote: pair ? all.get(pair.remoteCandidateId) : null,
  };
}

/**
 * @param {IceServer} server
 * @returns {RTCIceServer}
 */
function rtcIceServer({ urls, username, credential }) {
  /** @type {RTCIceServer} */
  const server = { urls: [...urls] };
  if (username !== null) server.username = username;
  if (credential !== null) server.credential = credential;
  return server;
}

/** @param {{type?: string | null, address?: string | null, port?: number | null}} candidate */
function endKey({ type, address, port }) {
  return `${type} ${address} ${port}`;
}

/** @param {unknown} error */
function describeError(error) {
  if (!(error instanceof Error)) return String(error);
  return error.message ? `${error.name}: ${error.message}` : error.name;
}

/** @param {string} text */
function badSdp(text) {
  return new ProtocolError(text, { code: "bad_sdp", field: "$.sdp" });
}

function noConnection() {
  return new ConnectionFailed("an ICE restart before there is a connection to restart");
}

function closedHere() {
  return new ConnectionFailed("the connection was closed here");
}

/** In seconds, on a clock that only goes forward. */
function connectionNow() {
  return performance.now() / 1000;
}
