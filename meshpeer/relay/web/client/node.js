// A whole peer without its I/O: the mesh, its links and their data, put together.
//
// The shell drives a `Node`: it is fed what happened and returns what is to be done.

import {
  ConfigError,
  ProtocolError,
  brief,
  compareTexts,
  decodeFrame,
  decodeLink,
  encode,
  encodeFrame,
  repr,
} from "./codec.js";
import { Delivery, RELAY } from "./delivery.js";
import { Link, pathOf } from "./link.js";
import { Mesh } from "./mesh.js";
import { Reports } from "./reports.js";
import { earliest } from "./restart.js";
import { Route } from "./route.js";

/** @import { IceCandidate, IceServerInfo, IceServers, LinkMessage, LinkReport, Member, MeshError, SignalIn, SignalOut, UndeliveredMessage } from "./codec.js" */
/** @import { MemberJoined, MemberLeft, MemberUpdated, Notice, Refused, RestartIce, Welcome } from "./codec.js" */
/** @import { DeliveryConfig, Received } from "./delivery.js" */
/** @import { AcceptOffer, CandidatePair, History, LinkConfig, LinkOutput, MakeOffer, Operation } from "./link.js" */
/** @import { MeshOutput } from "./mesh.js" */
/** @import { RouteConfig, RouteOutput } from "./route.js" */

/**
 * What a node wants done.
 * - Signal: hand this to the signalling service
 * - Run: run an operation on a connection, after those of the same peer that came before
 * - SendFrame: send this on a path, the epoch of a connection or `RELAY`; it may be lost with it
 * - Ready: this peer's `Node.delivery` may have something to pull, or room for more messages
 * - Probe: send a check over the connection of this epoch, and report `Node.ponged` when it is
 *   answered; no frame: what waits in the message channel does not delay it, and it is not resent
 * - Deliver: messages for the application
 * - Ponged: the other side answered a ping of the shell's
 * - RequestsRefused: these requests were accepted before it was known that the other side does not
 *   take them: they are larger than it takes, or on one channel more
 * - UseServers: the STUN and TURN servers that the signalling service names, from now on
 * - ReportLinks: tell the signalling service how these links stand
 * - Tell: tell the application
 * @typedef {{kind: "Signal", message: SignalOut}
 *   | {kind: "Run", peerId: string, incarnation: string, epoch: number, operation: Operation}
 *   | {kind: "SendFrame", peerId: string, path: number, data: Uint8Array}
 *   | {kind: "Ready", peerId: string}
 *   | {kind: "Probe", peerId: string, epoch: number, nonce: number}
 *   | {kind: "Deliver", peerId: string, path: Path, messages: Received[]}
 *   | {kind: "Ponged", peerId: string, nonce: number}
 *   | {kind: "RequestsRefused", peerId: string, numbers: number[]}
 *   | {kind: "UseServers", servers: IceServer[]}
 *   | {kind: "ReportLinks", links: LinkReport[]}
 *   | {kind: "Tell", event: any}} NodeOutput
 */

/** @typedef {"direct" | "turn" | "relay"} Path */
/** @typedef {"new" | "connecting" | "connected" | "disconnected" | "failed" | "closed"} PeerState */
/**
 * One STUN or TURN server (W3C WebRTC, RTCIceServer; URIs as in RFC 7064 and RFC 7065).
 * @typedef {{kind: "IceServer", urls: string[], username: string | null, credential: string | null}} IceServer
 */
/** @typedef {DeliveryConfig & LinkConfig & RouteConfig} NodeConfig */
/** @typedef {Welcome | MemberJoined | MemberLeft | MemberUpdated | SignalIn | Refused | IceServers | Notice | RestartIce} NodeSignal */

/** Seconds between two `BadInput` events about what a peer sends over the relay. */
const COMPLAIN_EVERY = 1;
/** Nonces of ping frames from here on are the shell's, for `Ponged`. */
const PINGS = 2 ** 31;
/** Only a service that forwards very late could need an older one than these. */
const MAX_ENDED = 1000;

/** What a node keeps of a peer that is there. */
class NodePeer {
  /** The state that the application knows. @type {PeerState} */
  told = "new";
  /** The path that it knows. @type {Path | null} */
  toldPath = null;
  /** When the latest `BadInput` about what comes over the relay was told. */
  complained = -Infinity;
  /** Whether data comes over the relay, as the rest of the node knows it. */
  relayed = false;
  /** The deadline that is in the node's heap. @type {number | null} */
  armed = null;
  /** How long it was in each of the states before.
      @type {Partial<Record<PeerState, number>>} */
  seconds = {};
  /** Why it is as it is. */
  reason = "in the room";
  /** What a connection said last, and its epoch. @type {[epoch: number, state: string]} */
  iceState = [0, "new"];

  /**
   * @param {Member} member
   * @param {Link} link
   * @param {Delivery} delivery
   * @param {Route} route
   * @param {number} since When the state that the application knows began.
   */
  constructor(member, link, delivery, route, since) {
    this.member = member;
    this.link = link;
    this.delivery = delivery;
    this.route = route;
    this.since = since;
  }
}

/** What waits for its time, earliest first; of the same time in the order of their ids. */
class PeerHeap {
  /** @type {[at: number, peerId: string][]} */
  #heap = [];

  /** The earliest; undefined when there is none. */
  get first() {
    return this.#heap.length ? this.#heap[0] : undefined;
  }

  /**
   * @param {number} at
   * @param {string} peerId
   */
  push(at, peerId) {
    const heap = this.#heap;
    let place = heap.push([at, peerId]) - 1;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      if (!this.#isBefore(place, parent)) break;
      [heap[place], heap[parent]] = [heap[parent], heap[place]];
      place = parent;
    }
  }

  /** Take out the earliest, which must be there. */
  pop() {
    const heap = this.#heap;
    const first = heap[0];
    const last = /** @type {[number, string]} */ (heap.pop());
    if (heap.length) heap[0] = last;
    for (let place = 0; ; ) {
      let least = place;
      for (const child of [2 * place + 1, 2 * place + 2]) {
        if (child < heap.length && this.#isBefore(child, least)) least = child;
      }
      if (least === place) return first;
      [heap[place], heap[least]] = [heap[least], heap[place]];
      place = least;
    }
  }

  /**
   * @param {number} one
   * @param {number} other
   */
  #isBefore(one, other) {
    const [a, b] = [this.#heap[one], this.#heap[other]];
    return a[0] !== b[0] ? a[0] < b[0] : compareTexts(a[1], b[1]) < 0;
  }
}

/** One peer of a room. */
export class Node {
  #config;
  #random;
  #incarnation;
  #mesh;
  /** @type {Map<string, NodePeer>} */
  #peers = new Map();
  // The epoch at which the link to an incarnation ended: to tell late signals of it from those of a
  // stranger, and to go on from there if it comes back, so that no epoch is used twice. With it
  // what the application has not taken of its messages, which still counts then.
  /** @type {Map<string, {epoch: number, history: History, delivery: Delivery}>} */
  #ended = new Map();
  // The links' deadlines, earliest first. Entries that no longer hold are skipped when they come
  // up, so that what happens on one link costs nothing for the others.
  #heap = new PeerHeap();
  /** @type {IceServers | null} */
  #iceServers = null;
  #reports = new Reports();
  /** Whether the signalling service forwards data, as far as it can be reached. */
  #forwards = false;

  /**
   * @param {NodeConfig} config
   * @param {object} options
   * @param {string} options.peerId
   * @param {string} options.incarnation
   * @param {() => number} options.random Gives numbers in [0, 1).
   */
  constructor(config, { peerId, incarnation, random }) {
    this.#config = config;
    this.#random = random;
    this.#incarnation = incarnation;
    this.#mesh = new Mesh(peerId, incarnation);
  }

  // --- what the shell reads; it throws for a peer that is not there ---

  /**
   * @param {string} peerId
   * @returns {NodePeer}
   */
  #peer(peerId) {
    const peer = this.#peers.get(peerId);
    if (peer === undefined) throw new Error(`${peerId} is not there`);
    return peer;
  }

  /**
   * The link to a peer.
   * @param {string} peerId
   */
  link(peerId) {
    return this.#peer(peerId).link;
  }

  /**
   * All messages to and from a peer.
   * @param {string} peerId
   */
  delivery(peerId) {
    return this.#peer(peerId).delivery;
  }

  /**
   * The state that the application knows.
   * @param {string} peerId
   */
  stateOf(peerId) {
    return this.#peer(peerId).told;
  }

  /**
   * How data flows now; null while it does not.
   * @param {string} peerId
   * @returns {Path | null}
   */
  pathOf(peerId) {
    const { route, link } = this.#peer(peerId);
    if (route.state === "relay" && link.state !== "closed") return "relay";
    return link.state === "connected" ? directPath(link) : null;
  }

  /**
   * The latest round trip on the path in seconds.
   * @param {string} peerId
   */
  rttOf(peerId) {
    const { route, link } = this.#peer(peerId);
    return route.state === "relay" ? route.rtt : link.rtt;
  }

  /**
   * How it stands with a peer.
   * @param {string} peerId
   * @param {number} now
   */
  report(peerId, now) {
    const peer = this.#peer(peerId);
    const { link, member, told } = peer;
    return {
      kind: "ConnectionReport",
      peerId,
      incarnation: member.incarnation,
      name: member.name,
      state: told,
      iceState: this.iceStateOf(peerId),
      path: this.pathOf(peerId),
      pair: link.pair,
      rtt: this.rttOf(peerId),
      reason: peer.reason,
      epoch: link.epoch,
      generation: link.generation,
      restarts: link.history.restarts,
      seconds: { ...peer.seconds, [told]: (peer.seconds[told] ?? 0) + now - peer.since },
    };
  }

  /**
   * @param {string} peerId
   * @returns {LinkReport}
   */
  #linkReport(peerId) {
    const { link, delivery, member, told, reason } = this.#peer(peerId);
    const { history } = link;
    const rtt = this.rttOf(peerId);
    return {
      kind: "LinkReport",
      peerId,
      incarnation: member.incarnation,
      state: told,
      iceState: this.iceStateOf(peerId),
      path: this.pathOf(peerId),
      // So fine that it says something, and so coarse that it is often the same again.
      rtt: rtt === null ? null : rounded(rtt, rtt >= 0.01 ? 3 : 4),
      reason: brief(reason),
      failure: brief(history.failure),
      restarts: history.restarts,
      attempts: history.attempts,
      successes: history.connections,
      failures: link.failures,
      connectTime: history.connections ? rounded(history.connectTime, 3) : null,
      fallbacks: history.fallbacks,
      messages: delivery.messagesDirect,
      bytesSent: delivery.bytesSent,
      bytesReceived: delivery.bytesReceived,
    };
  }

  /**
   * The ICE state, as W3C WebRTC names it.
   * @param {string} peerId
   * @returns {string}
   */
  iceStateOf(peerId) {
    const { link, iceState } = this.#peer(peerId);
    if (["disconnected", "failed", "closed"].includes(link.state)) return link.state;
    const [epoch, said] = iceState;
    return epoch === link.epoch ? said : "new";
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    let first = this.#heap.first;
    while (first !== undefined && this.#peers.get(first[1])?.armed !== first[0]) {
      this.#heap.pop();
      first = this.#heap.first;
    }
    return earliest(first?.[0], this.#mesh.nextDeadline(), this.#reports.nextDeadline());
  }

  // --- from the signalling service ---

  /**
   * Something came from the signalling service.
   * @param {NodeSignal} event
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  signaling(event, now) {
    switch (event.kind) {
      case "SignalIn":
        return this.#signal(event, now);
      case "Welcome": {
        this.#forwards = event.forwardWindow > 0;
        this.#reports.wanted(event.reportInterval, now);
        // First of all: whoever is dialled now is dialled with them.
        const out = event.iceServers === null ? [] : this.#serversNamed(event.iceServers, now);
        const said = event.resumed
          ? this.#mesh.resumed(now)
          : this.#mesh.welcome(event.members, event.seatTimeout, now);
        out.push(...this.#meshSaid(said, now));
        for (const peerId of [...this.#peers.keys()]) out.push(...this.#relayChanged(peerId, now));
        return out;
      }
      case "MemberJoined":
        return this.#meshSaid(this.#mesh.joined(event.member), now);
      case "MemberLeft":
        return this.#meshSaid(this.#mesh.left(event), now);
      case "MemberUpdated":
        return this.#meshSaid(this.#mesh.updated(event), now);
      case "IceServers":
        return this.#serversNamed(event, now);
      case "Notice":
        return [tell({ kind: "NoticeReceived", text: event.text })];
      case "RestartIce": {
        // One that is not there has left meanwhile.
        const peers = [...this.#peers.keys()].filter((each) => event.peerId === null || event.peerId === each);
        return this.#restartAll(peers, "the operator of the relay asks for it", now);
      }
      default:
        // `Refused`, of a signal to nobody: presence or a deadline settles it.
        return [];
    }
  }

  /**
   * The signalling service can't be reached.
   * @param {number} now
   */
  signalingLost(now) {
    this.#forwards = false;
    this.#reports.lost();
    const out = this.#meshSaid(this.#mesh.signalingLost(), now);
    for (const peerId of [...this.#peers.keys()]) out.push(...this.#relayChanged(peerId, now));
    return out;
  }

  /**
   * @param {IceServers} named
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #serversNamed(named, now) {
    const before = this.#iceServers?.servers ?? [];
    if (this.#iceServers !== null && sameServers(named.servers, before)) return [];
    let servers;
    try {
      servers = named.servers.map(iceServer);
    } catch (exc) {
      if (!(exc instanceof ConfigError)) throw exc;
      const error = new ProtocolError(exc.message, { code: "bad_ice_server", field: "$.servers" });
      return [badInput(null, error)];
    }
    this.#iceServers = named;
    // An allocation ends with the credentials that it was made with, and a path over it with it.
    // That of the other side is its own business.
    const known = new Map(named.servers.flatMap((each) => each.urls.map((url) => [url, each])));
    const ending = new Set();
    for (const each of before) {
      for (const url of each.urls) if (!sameCredentials(known.get(url), each)) ending.add(url);
    }
    const overThem = [...this.#peers.keys()].filter((peerId) => ending.has(this.link(peerId).pair?.local.server));
    return [{ kind: "UseServers", servers }, ...this.#restartAll(overThem, "new TURN credentials", now)];
  }

  /**
   * @param {SignalIn} signal
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #signal(signal, now) {
    const { sender, incarnation } = signal;
    const peer = this.#find(sender, incarnation);
    if (peer === null) {
      if (this.#ended.has(endedKey(sender, incarnation))) return [];
      const text = `a signal of incarnation ${incarnation} of ${repr(sender)}, which is not in the room`;
      return [badInput(sender, new ProtocolError(text, { code: "unknown_sender", field: "$.incarnation" }))];
    }
    if (signal.toIncarnation !== this.#incarnation) {
      return [signalOut(peer, 0, { kind: "Stale", incarnation: this.#incarnation, epoch: peer.link.epoch })];
    }
    let message;
    try {
      message = decodeLink(signal.body);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      return [badInput(sender, error)];
    }
    return this.#linkSaid(sender, peer.link.message(signal.epoch, message, now), now);
  }

  // --- from the connections ---

  /**
   * It made this description.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {MakeOffer | AcceptOffer} operation
   * @param {string} sdp
   * @param {number} now
   */
  operationDone(peerId, incarnation, epoch, operation, sdp, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    const said =
      operation.kind === "MakeOffer"
        ? link.offerMade(epoch, operation.generation, sdp, now)
        : link.answerMade(epoch, operation.generation, sdp, now);
    return this.#linkSaid(peerId, said, now);
  }

  /**
   * An operation did not succeed.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {Operation} operation
   * @param {MeshError} error
   * @param {number} now
   */
  operationFailed(peerId, incarnation, epoch, operation, error, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    return this.#linkSaid(peerId, link.operationFailed(epoch, operation, error, now), now);
  }

  /**
   * The message channel is open.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} now
   */
  connectionOpened(peerId, incarnation, epoch, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.opened(epoch, now), now);
  }

  /**
   * The connection is over.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  connectionLost(peerId, incarnation, epoch, reason, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.lost(epoch, reason, now), now);
  }

  /**
   * The connection found candidates that its description did not have.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {boolean} end
   * @param {number} now
   */
  localCandidates(peerId, incarnation, epoch, generation, candidates, end, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    const said = link.localCandidates(epoch, generation, candidates, { end, now });
    return this.#linkSaid(peerId, said, now);
  }

  /**
   * Data goes over this pair from now on.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} generation
   * @param {CandidatePair} pair
   * @param {number} now
   */
  pairSelected(peerId, incarnation, epoch, generation, pair, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    return this.#linkSaid(peerId, link.selected(epoch, generation, pair, now), now);
  }

  /**
   * What data went over has ended; the connection waits for another generation.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  pathLost(peerId, incarnation, epoch, reason, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.pathLost(epoch, reason, now), now);
  }

  /**
   * Something of the other side arrived that is no frame, and was `answered` or not.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {boolean} answered
   * @param {number} now
   */
  heard(peerId, incarnation, epoch, answered, now) {
    const said = this.#find(peerId, incarnation)?.link.heard(epoch, now, { answered }) ?? [];
    return said.length ? this.#linkSaid(peerId, said, now) : [];
  }

  /**
   * The answer to a `Probe` arrived.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} nonce
   * @param {number} now
   */
  ponged(peerId, incarnation, epoch, nonce, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null) return [];
    const { link, route } = peer;
    if (link.rtt === null) this.#reports.changed(peerId, now);
    const said = link.pong(epoch, nonce, now);
    const out = said.length ? this.#linkSaid(peerId, said, now) : [];
    if (route.state === "relay" && epoch === link.epoch && link.state === "connected") {
      // Both had asked for the relay before either heard that the connection is back. A check that
      // was answered says that it passes both ways, which its state alone does not.
      out.push(...this.#routeSaid(peer, route.link(now, { up: true }), now));
    }
    return out;
  }

  /**
   * What the connection says of its ICE, in W3C WebRTC's words.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} state
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  iceState(peerId, incarnation, epoch, state, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer !== null && epoch === peer.link.epoch) {
      peer.iceState = [epoch, state];
      this.#reports.changed(peerId, now);
    }
    return [];
  }

  /**
   * A frame arrived over the connection.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {Uint8Array} data
   * @param {number} now
   */
  frameReceived(peerId, incarnation, epoch, data, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null || epoch !== peer.link.epoch || !peer.link.alive) return [];
    const said = peer.link.heard(epoch, now);
    const out = said.length ? this.#linkSaid(peerId, said, now) : [];
    try {
      this.#frame(peer, epoch, data, now, out);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      // What follows on this connection can't be trusted to be understood.
      out.push(badInput(peerId, error));
      out.push(...this.#linkSaid(peerId, peer.link.lost(epoch, error.message, now), now));
    }
    return out;
  }

  /**
   * A frame arrived over the relay, which says who sent it.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {Uint8Array} data
   * @param {number} now
   */
  forwarded(peerId, incarnation, data, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null || !this.#relays(peer.link)) return [];
    /** @type {NodeOutput[]} */
    const out = [];
    try {
      this.#frame(peer, RELAY, data, now, out);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      // Nothing ends that could keep such frames from coming: they are told now and then.
      if (now - peer.complained >= COMPLAIN_EVERY) {
        peer.complained = now;
        out.push(badInput(peerId, error));
      }
      peer.delivery.detach(RELAY);
      out.push(...this.#routeSaid(peer, peer.route.fault(now), now));
      return out;
    }
    peer.route.heard(now);
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {number} path
   * @param {Uint8Array} data
   * @param {number} now
   * @param {NodeOutput[]} out
   */
  #frame(peer, path, data, now, out) {
    const { delivery } = peer;
    const { peerId } = peer.member;
    const frame = decodeFrame(data);
    switch (frame.kind) {
      case "Parts": {
        /** @type {Received[]} */
        const messages = [];
        try {
          delivery.received(path, frame, now, messages);
        } finally {
          if (messages.length) {
            out.push({ kind: "Deliver", peerId, path: path === RELAY ? "relay" : directPath(peer.link), messages });
          }
        }
        if (delivery.due) out.push({ kind: "Ready", peerId });
        // All that can have moved here, where most that arrives passes through.
        const at = delivery.nextDeadline();
        if (at !== null && (peer.armed === null || at < peer.armed)) this.#arm(peer);
        break;
      }
      case "Resume": {
        // An answer that waits for room on a path that the other side has just left can't be sent
        // any more: it is answered here instead.
        const astray = delivery.answering && delivery.inbound !== path;
        if (!delivery.resumed(path, frame)) break;
        const [refused, numbers] = delivery.refused();
        if (refused.length) out.push(undeliveredTo(peer, refused));
        if (numbers.length) out.push({ kind: "RequestsRefused", peerId, numbers });
        const said = peer.route.asked(now, { relay: path === RELAY, ask: frame.ask || astray });
        out.push(...this.#routeSaid(peer, said, now));
        out.push({ kind: "Ready", peerId });
        break;
      }
      case "Ping":
        delivery.received(path, frame, now, []);
        if (frame.nonce) delivery.pong(frame.nonce);
        if (path !== RELAY) peer.link.spoke(now);
        out.push({ kind: "Ready", peerId });
        break;
      case "Pong":
        if (frame.nonce >= PINGS) {
          out.push({ kind: "Ponged", peerId, nonce: frame.nonce - PINGS });
        } else if (path === RELAY) {
          if (peer.route.rtt === null) this.#reports.changed(peerId, now);
          peer.route.ponged(frame.nonce, now);
        }
        break;
      case "Bye":
        out.push(...this.#meshSaid(this.#mesh.departed(peerId, peer.member.incarnation), now));
        break;
      default:
        delivery.received(path, frame, now, []);
        out.push({ kind: "Ready", peerId });
    }
  }

  /**
   * Send a ping frame behind what was sent before, for `Ponged`; none when there is no path. It
   * throws when the peer is not there.
   * @param {string} peerId
   * @param {number} nonce
   * @returns {NodeOutput[]}
   */
  ping(peerId, nonce) {
    const path = this.#peer(peerId).delivery.out;
    if (path === null) return [];
    return [sendFrame(peerId, path, encodeFrame({ kind: "Ping", nonce: PINGS + nonce }))];
  }

  /**
   * The shell sent data over the current connection. It throws when the peer is not there.
   * @param {string} peerId
   * @param {number} now
   */
  spoke(peerId, now) {
    this.#peer(peerId).link.spoke(now);
  }

  /**
   * The application took a message of this channel.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} channel
   * @param {number} charge
   * @returns {NodeOutput[]}
   */
  taken(peerId, incarnation, channel, charge) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null) {
      this.#ended.get(endedKey(peerId, incarnation))?.delivery.taken(channel, charge);
      return [];
    }
    peer.delivery.taken(channel, charge);
    return peer.delivery.due ? [{ kind: "Ready", peerId }] : [];
  }

  // --- what the program and its machine say ---

  /**
   * The addresses of this machine changed: every path may be gone, or a better one there.
   * @param {number} now
   */
  addressesChanged(now) {
    return this.#restartAll([...this.#peers.keys()], "the local addresses changed", now);
  }

  /**
   * An ICE restart with a peer, or with all, where there is a connection. It throws when the peer
   * is not there.
   * @param {string | null} peerId
   * @param {number} now
   */
  forceRestart(peerId, now) {
    const peers = peerId === null ? [...this.#peers.keys()] : [peerId];
    return this.#restartAll(peers, "asked for", now);
  }

  /**
   * @param {string[]} peers
   * @param {string} reason
   * @param {number} now
   */
  #restartAll(peers, reason, now) {
    return peers.flatMap((peerId) => {
      const said = this.#peer(peerId).link.restart(reason, now);
      return this.#linkSaid(peerId, said, now);
    });
  }

  // --- time and the end ---

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    const out = this.#meshSaid(this.#mesh.tick(now), now);
    for (let first = this.#heap.first; first !== undefined && first[0] <= now; first = this.#heap.first) {
      const [at, peerId] = this.#heap.pop();
      const peer = this.#peers.get(peerId);
      if (peer === undefined || peer.armed !== at) continue;
      peer.armed = null;
      peer.delivery.tick(now);
      if (peer.delivery.due) out.push({ kind: "Ready", peerId });
      out.push(...this.#routeSaid(peer, peer.route.tick(now), now));
      if (this.#peers.has(peerId)) out.push(...this.#linkSaid(peerId, peer.link.tick(now), now));
    }
    const links = this.#reports.due(now, this.#peers, (peerId) => this.#linkReport(peerId));
    if (links.length) out.push({ kind: "ReportLinks", links });
    return out;
  }

  /**
   * Every link ends. The peers are told that we leave, unless `leaves` is false: who was replaced
   * or removed does not, and the signalling service says why it is gone.
   * @param {number} now
   * @param {{leaves?: boolean}} [options]
   */
  close(now, { leaves = true } = {}) {
    const bye = encodeFrame({ kind: "Bye" });
    /** @type {NodeOutput[]} */
    const out = [];
    for (const [peerId, { delivery, link, route }] of this.#peers) {
      const relayed = route.state === "relay";
      if (!link.alive && !relayed) continue;
      const path = relayed ? RELAY : link.epoch;
      // Or what has arrived, and waits for its acknowledgement, is taken for lost.
      const ack = delivery.lastAck();
      if (ack !== null) out.push(sendFrame(peerId, path, ack));
      if (leaves) out.push(sendFrame(peerId, path, bye));
    }
    out.push(...this.#meshSaid(this.#mesh.close(), now));
    this.#reports.lost();
    return out;
  }

  // --- putting outputs together ---

  /**
   * @param {string} peerId
   * @param {string} incarnation
   */
  #find(peerId, incarnation) {
    const peer = this.#peers.get(peerId);
    return peer === undefined || peer.member.incarnation !== incarnation ? null : peer;
  }

  /**
   * @param {MeshOutput[]} outputs
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #meshSaid(outputs, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    for (const output of outputs) {
      switch (output.kind) {
        case "OpenLink": {
          const { member } = output;
          const { peerId, incarnation } = member;
          const key = endedKey(peerId, incarnation);
          const ended = this.#ended.get(key);
          this.#ended.delete(key);
          const link = new Link(this.#config, {
            dials: output.dials,
            incarnation: this.#incarnation,
            random: this.#random,
            epoch: ended?.epoch ?? 0,
            history: ended?.history ?? null,
          });
          const delivery = ended?.delivery ?? new Delivery(this.#config);
          const peer = new NodePeer(member, link, delivery, new Route(this.#config), now);
          this.#peers.set(peerId, peer);
          out.push(tell({ ...member, kind: "PeerJoined" }));
          peer.route.start(now);
          out.push(...this.#linkSaid(peerId, link.start(now), now));
          out.push(...this.#relayChanged(peerId, now));
          break;
        }
        case "CloseLink":
          out.push(...this.#closeLink(output.peerId, output.reason, now));
          break;
        case "Renamed":
          this.#peer(output.member.peerId).member = output.member;
          out.push(tell({ ...output.member, kind: "PeerUpdated" }));
          break;
        case "Reachable": {
          const { peerId, reachable } = output;
          const { link } = this.#peer(peerId);
          if (reachable) this.#reports.unknown(peerId, now);
          out.push(...this.#linkSaid(peerId, link.setReachable(reachable, now), now));
          out.push(...this.#relayChanged(peerId, now));
          break;
        }
      }
    }
    return out;
  }

  /**
   * @param {string} peerId
   * @param {string} reason
   * @param {number} now
   */
  #closeLink(peerId, reason, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    const peer = this.#peer(peerId);
    const { delivery, link } = peer;
    const { incarnation, name } = peer.member;
    const lost = delivery.giveUp();
    if (lost.length) out.push(undeliveredTo(peer, lost));
    out.push(...this.#linkSaid(peerId, link.close(reason, now), now));
    this.#reports.ended(this.#linkReport(peerId), now);
    this.#peers.delete(peerId);
    delivery.detach(RELAY);
    this.#ended.set(endedKey(peerId, incarnation), { epoch: link.epoch, history: link.history, delivery });
    if (this.#ended.size > MAX_ENDED) {
      for (const oldest of this.#ended.keys()) {
        this.#ended.delete(oldest);
        break;
      }
    }
    if (delivery.half) this.#boundEnded();
    out.push(tell({ kind: "PeerLeft", peerId, incarnation, name, reason }));
    return out;
  }

  /**
   * Forget the oldest of those that ended in the middle of a message, when all that is kept of such
   * messages is too much. The latest is kept in any case.
   */
  #boundEnded() {
    /** @type {[key: string, half: number][]} */
    const halves = [];
    let held = 0;
    for (const [key, { delivery }] of this.#ended) {
      const { half } = delivery;
      if (half) halves.push([key, half]);
      held += half;
    }
    for (const [key, half] of halves.slice(0, -1)) {
      if (held <= this.#config.receiveWindow) return;
      this.#ended.delete(key);
      held -= half;
    }
  }

  /**
   * @param {string} peerId
   * @param {number} now
   */
  #relayChanged(peerId, now) {
    const peer = this.#peer(peerId);
    const up = this.#relays(peer.link);
    if (!up) peer.delivery.detach(RELAY);
    return this.#routeSaid(peer, peer.route.relay(now, { up }), now);
  }

  /**
   * Whether the relay is a path to this peer.
   * @param {Link} link
   */
  #relays(link) {
    return this.#forwards && link.reachable && this.#config.relayAfter !== null;
  }

  /**
   * @param {NodePeer} peer
   * @param {RouteOutput[]} outputs
   * @param {number} now
   */
  #routeSaid(peer, outputs, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    const { delivery, link, route } = peer;
    const { peerId } = peer.member;
    for (const output of outputs) {
      switch (output.kind) {
        case "Ping":
          out.push(sendFrame(peerId, RELAY, encodeFrame({ kind: "Ping", nonce: output.nonce })));
          break;
        case "Attach": {
          const path = output.relay ? RELAY : link.epoch;
          // Where a connection was only silent for a while, nothing of it is lost.
          if (!output.relay && delivery.inbound === path) break;
          if (output.ask) {
            out.push(sendFrame(peerId, path, delivery.attach(path, { ask: true })));
          } else {
            delivery.answer(path);
            out.push({ kind: "Ready", peerId });
          }
          break;
        }
      }
    }
    const relayed = route.state === "relay";
    if (relayed !== peer.relayed) {
      peer.relayed = link.carried = relayed;
      if (relayed) link.history.fallbacks++;
      else if (route.state !== "direct") link.history.failure = route.reason;
      out.push(...this.#tellState(peer, route.reason, now));
      this.#reports.changed(peerId, now);
    }
    this.#arm(peer);
    return out;
  }

  /**
   * See to it that `tick` comes in time for this peer.
   * @param {NodePeer} peer
   */
  #arm(peer) {
    const { delivery, link, route } = peer;
    const deadline = earliest(link.nextDeadline(), route.nextDeadline(), delivery.nextDeadline());
    if (deadline !== null && (peer.armed === null || deadline < peer.armed)) {
      peer.armed = deadline;
      this.#heap.push(deadline, peer.member.peerId);
    }
  }

  /**
   * @param {string} peerId
   * @param {LinkOutput[]} outputs
   * @param {number} now
   */
  #linkSaid(peerId, outputs, now) {
    const peer = this.#peer(peerId);
    const { incarnation } = peer.member;
    /** @type {NodeOutput[]} */
    const out = [];
    for (const output of outputs) {
      switch (output.kind) {
        case "SendSignal":
          out.push(signalOut(peer, output.epoch, output.body));
          break;
        case "Operate": {
          const { epoch, operation } = output;
          if (operation.kind === "CloseConnection") peer.delivery.detach(epoch);
          out.push({ kind: "Run", peerId, incarnation, epoch, operation });
          break;
        }
        case "Ping":
          out.push({ kind: "Probe", peerId, epoch: output.epoch, nonce: output.nonce });
          break;
        case "PairSelected":
          peer.reason = output.reason;
          out.push(tell(this.report(peerId, now)));
          break;
        case "Refuse":
          out.push(badInput(peerId, output.error));
          break;
        case "StateChanged":
          out.push(...this.#stateChanged(peer, output, now));
          break;
      }
      if (output.kind !== "Ping") this.#reports.changed(peerId, now);
    }
    this.#arm(peer);
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {{previous: string, state: string, reason: string}} change
   * @param {number} now
   */
  #stateChanged(peer, change, now) {
    const { link, route } = peer;
    const up = link.state === "connected";
    const said = up || change.previous === "connected" ? route.link(now, { up }) : [];
    // Over the relay `connected` goes on, so the path is told even where the state is not.
    const out = this.#tellState(peer, change.reason, now);
    out.push(...this.#routeSaid(peer, said, now));
    if (change.state !== "closed") {
      out.push(...this.#meshSaid(this.#mesh.linkAlive(peer.member.peerId, link.alive), now));
    }
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {string} reason
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #tellState(peer, reason, now) {
    const { peerId, incarnation, name } = peer.member;
    const state = peerState(peer);
    const path = this.pathOf(peerId);
    const previous = peer.told;
    if (state === previous && path === peer.toldPath) return [];
    peer.told = state;
    peer.toldPath = path;
    peer.reason = reason;
    /** @type {NodeOutput[]} */
    const out = [];
    if (state !== previous) {
      peer.seconds[previous] = (peer.seconds[previous] ?? 0) + now - peer.since;
      peer.since = now;
      const { epoch } = peer.link;
      out.push(
        tell({ kind: "PeerStateChanged", peerId, incarnation, name, previous, state, path, reason, epoch }),
      );
    }
    out.push(tell(this.report(peerId, now)));
    return out;
  }
}

/**
 * The state as the application is told it.
 * @param {NodePeer} peer
 * @returns {PeerState}
 */
function peerState({ link, route, told }) {
  if (route.state === "relay" && link.state !== "closed") return "connected";
  const state = link.peerState;
  if ((state === "new" || state === "connecting") && (told === "connected" || told === "disconnected")) {
    return "disconnected"; // it was connected, over the relay
  }
  if (state === "failed" && told === "connected") return "disconnected"; // the attempts failed before; none has since
  return state;
}

/**
 * How data flows over a connection that is up.
 * @param {Link} link
 * @returns {Path}
 */
function directPath({ pair }) {
  return pair === null ? "direct" : pathOf(pair);
}

/**
 * @param {NodePeer} peer
 * @param {number} epoch
 * @param {LinkMessage} body
 * @returns {NodeOutput}
 */
function signalOut({ member }, epoch, body) {
  const { peerId: to, incarnation: toIncarnation } = member;
  return { kind: "Signal", message: { kind: "SignalOut", to, toIncarnation, epoch, body: encode(body) } };
}

/**
 * @param {NodePeer} peer
 * @param {UndeliveredMessage[]} messages
 */
function undeliveredTo({ member: { peerId, incarnation } }, messages) {
  return tell({ kind: "MessagesUndelivered", peerId, incarnation, messages });
}

/**
 * @param {string | null} peerId
 * @param {MeshError} error
 */
function badInput(peerId, error) {
  return tell({ kind: "BadInput", peerId, error });
}

/**
 * @param {object} event
 * @returns {NodeOutput}
 */
function tell(event) {
  return { kind: "Tell", event };
}

/**
 * @param {string} peerId
 * @param {number} path
 * @param {Uint8Array} data
 * @returns {NodeOutput}
 */
function sendFrame(peerId, path, data) {
  return { kind: "SendFrame", peerId, path, data };
}

/**
 * As the shell is given it. Throws `ConfigError`.
 * @param {IceServerInfo} info
 * @returns {IceServer}
 */
function iceServer({ urls, username, credential }) {
  const turn = urls.find((url) => url.startsWith("turn"));
  if (turn !== undefined && (username === null || credential === null)) {
    throw new ConfigError(`IceServer.username and IceServer.credential must be given for ${repr(turn)}`);
  }
  return { kind: "IceServer", urls, username, credential };
}

/**
 * @param {IceServerInfo | undefined} one
 * @param {IceServerInfo} other
 */
function sameCredentials(one, other) {
  return one?.username === other.username && one?.credential === other.credential;
}

/**
 * @param {readonly IceServerInfo[]} some
 * @param {readonly IceServerInfo[]} others
 */
function sameServers(some, others) {
  const same = (/** @type {IceServerInfo} */ one, /** @type {IceServerInfo} */ other) =>
    sameCredentials(one, other) && one.urls.length === other.urls.length && one.urls.every((url, i) => url === other.urls[i]);
  return some.length === others.length && some.every((one, i) => same(one, others[i]));
}

/**
 * The name of an incarnation that is gone. There is no space in an incarnation.
 * @param {string} peerId
 * @param {string} incarnation
 */
function endedKey(peerId, incarnation) {
  return `${incarnation} ${peerId}`;
}

/**
 * @param {number} seconds
 * @param {number} digits
 */
function rounded(seconds, digits) {
  return Number(seconds.toFixed(digits));
}
