// One local peer and one remote incarnation: how their connection comes about, and comes back.
//
// A Link is fed inputs and returns outputs. What it does with an input is one row of LINK_TABLE,
// found by (state, input, condition); there is no other place where the state changes. An input
// that the table does not list raises UnexpectedInput when it is the shell's doing, and is refused
// with a ProtocolError when it came from the other side; either way nothing changes.
//
// The peer with the smaller id dials, the other waits (and may ask to be dialled). Each attempt has
// a number, its epoch; every signal carries it, and so does everything the shell reports about a
// connection. What belongs to an earlier epoch has rows of its own and changes nothing.
//
// A connection lives through ICE restarts, which have a table of their own: the link says when one
// begins, hands on what is about one (a generation above 0), and when none of them helps makes a
// new connection.

import { MAX_CANDIDATES, ProtocolError, UnexpectedInput, countCandidates, printable } from "./codec.js";
import { Restart, earliest, isDue } from "./restart.js";
import { Backoff, Deadlines, STALL } from "./timing.js";
import { Trickle } from "./trickle.js";

/** @import { Answer, Candidates, IceCandidate, LinkMessage, Offer } from "./codec.js" */
/** @import { RestartOutput } from "./restart.js" */

// --- what a link asks the shell to do: the outputs that the link and its ICE restarts share ------

/**
 * Make an offer and report it. Generation 0 makes the connection first.
 * @typedef {{kind: "MakeOffer", generation: number}} MakeOffer
 */
/**
 * Make an answer to this offer and report it. Generation 0 makes the connection first.
 * @typedef {{kind: "AcceptOffer", sdp: string, generation: number}} AcceptOffer
 */
/**
 * Give the answer to the connection.
 * @typedef {{kind: "AcceptAnswer", sdp: string, generation: number}} AcceptAnswer
 */
/**
 * Give remote candidates to the connection.
 * @typedef {{kind: "AddCandidates", candidates: IceCandidate[], end: boolean, generation: number}} AddCandidates
 */
/**
 * Close the connection; later operations wait until it is closed.
 * @typedef {{kind: "CloseConnection"}} CloseConnection
 */
/** @typedef {MakeOffer | AcceptOffer | AcceptAnswer | AddCandidates | CloseConnection} Operation */
/**
 * Run an operation on the connection of this epoch, after those that came before it.
 * @typedef {{kind: "Operate", epoch: number, operation: Operation}} Operate
 */
/**
 * Send this to the remote incarnation.
 * @typedef {{kind: "SendSignal", epoch: number, body: LinkMessage}} SendSignal
 */
/**
 * What the other side sent was refused.
 * @typedef {{kind: "Refuse", error: ProtocolError}} Refuse
 */

// --- the table -----------------------------------------------------------------------------------

/**
 * Where a link stands. `Link.peerState` says it in the words of the public interface.
 * - waiting: the other side is to dial
 * - offering: an offer is being made
 * - offered: the offer is sent, the answer has not come
 * - answering: an answer is being made
 * - checking: both descriptions are exchanged; ICE, DTLS and SCTP are at work
 * - disconnected: nothing was heard for a while; the connection may still come back
 * - failed: attempts failed; another follows after a wait
 * @typedef {"new" | "waiting" | "offering" | "offered" | "answering" | "checking" | "connected"
 *   | "disconnected" | "failed" | "closed"} LinkState
 */

/**
 * What can happen to a link. From the other side, with a generation above 0: an offer is a
 * "restart offer", an answer or candidates are a "restart reply"; a "restart report" is what became
 * of an operation of such a generation. "restart": something asks for an ICE restart.
 * @typedef {"start"
 *   | "offer" | "answer" | "candidates" | "dial" | "stale" | "restart offer" | "restart reply"
 *   | "offer made" | "answer made" | "operation failed" | "opened" | "lost" | "path lost" | "heard"
 *   | "candidates found" | "selected" | "restart report"
 *   | "deadline" | "silence"
 *   | "reachable" | "restart" | "close"} LinkInput
 */

/**
 * In `state`, on `input` under `condition`: run `actions`, be in `next`. `reason` says why; it is
 * shown to users when the state changes. `{}` takes the detail of the input.
 * @typedef {[state: LinkState, input: LinkInput, condition: string, next: LinkState,
 *   actions: string[], reason: string]} LinkRow
 */

/** @type {readonly LinkRow[]} */
export const LINK_TABLE = [
  // <generated: link-table>
  ["new", "start", "dials", "offering", ["dial"], "dialling"],
  ["new", "start", "waits", "waiting", [], "waiting to be dialled"],
  ["waiting", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["answering", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["checking", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["connected", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["disconnected", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["failed", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["waiting", "offer", "waits, current", "waiting", [], "the same offer again"],
  ["answering", "offer", "waits, current", "answering", [], "the same offer again"],
  ["checking", "offer", "waits, current", "checking", [], "the same offer again"],
  ["connected", "offer", "waits, current", "connected", [], "the same offer again"],
  ["disconnected", "offer", "waits, current", "disconnected", [], "the same offer again"],
  ["failed", "offer", "waits, current", "failed", [], "the same offer again"],
  ["waiting", "offer", "waits, older", "waiting", ["replyStale"], "an epoch that is over"],
  ["answering", "offer", "waits, older", "answering", ["replyStale"], "an epoch that is over"],
  ["checking", "offer", "waits, older", "checking", ["replyStale"], "an epoch that is over"],
  ["connected", "offer", "waits, older", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "waits, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "waits, older", "failed", ["replyStale"], "an epoch that is over"],
  ["offering", "offer", "dials, older", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offering", "offer", "dials, current", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offering", "offer", "dials, newer", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, older", "offered", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, current", "offered", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, newer", "offered", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, older", "checking", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, current", "checking", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, newer", "checking", [], "both dial: the offer of the smaller id wins"],
  ["connected", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["disconnected", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["failed", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["connected", "offer", "dials, older", "connected", ["replyStale"], "an epoch that is over"],
  ["connected", "offer", "dials, current", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "dials, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "dials, current", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "dials, older", "failed", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "dials, current", "failed", ["replyStale"], "an epoch that is over"],
  ["offered", "answer", "dials, current", "checking", ["acceptAnswer"], "answered"],
  ["offering", "answer", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "answer", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "answer", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "answer", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "answer", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "answer", "dials, older", "failed", [], "an epoch that is over"],
  ["checking", "answer", "dials, current", "checking", [], "the same answer again"],
  ["connected", "answer", "dials, current", "connected", [], "the same answer again"],
  ["disconnected", "answer", "dials, current", "disconnected", [], "the same answer again"],
  ["failed", "answer", "dials, current", "failed", [], "an attempt that failed"],
  ["offered", "candidates", "dials, current", "offered", ["addCandidates"], "candidates"],
  ["checking", "candidates", "dials, current", "checking", ["addCandidates"], "candidates"],
  ["connected", "candidates", "dials, current", "connected", ["addCandidates"], "candidates"],
  ["disconnected", "candidates", "dials, current", "disconnected", ["addCandidates"], "candidates"],
  ["answering", "candidates", "waits, current", "answering", ["addCandidates"], "candidates"],
  ["checking", "candidates", "waits, current", "checking", ["addCandidates"], "candidates"],
  ["connected", "candidates", "waits, current", "connected", ["addCandidates"], "candidates"],
  ["disconnected", "candidates", "waits, current", "disconnected", ["addCandidates"], "candidates"],
  ["failed", "candidates", "dials, current", "failed", [], "an attempt that failed"],
  ["waiting", "candidates", "waits, current", "waiting", [], "an attempt that failed"],
  ["failed", "candidates", "waits, current", "failed", [], "an attempt that failed"],
  ["offering", "candidates", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "candidates", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "candidates", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "candidates", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "candidates", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "candidates", "dials, older", "failed", [], "an epoch that is over"],
  ["waiting", "candidates", "waits, older", "waiting", [], "an epoch that is over"],
  ["answering", "candidates", "waits, older", "answering", [], "an epoch that is over"],
  ["checking", "candidates", "waits, older", "checking", [], "an epoch that is over"],
  ["connected", "candidates", "waits, older", "connected", [], "an epoch that is over"],
  ["disconnected", "candidates", "waits, older", "disconnected", [], "an epoch that is over"],
  ["failed", "candidates", "waits, older", "failed", [], "an epoch that is over"],
  ["waiting", "candidates", "waits, newer", "waiting", ["holdCandidates"], "candidates before their offer"],
  ["answering", "candidates", "waits, newer", "answering", ["holdCandidates"], "candidates before their offer"],
  ["checking", "candidates", "waits, newer", "checking", ["holdCandidates"], "candidates before their offer"],
  ["connected", "candidates", "waits, newer", "connected", ["holdCandidates"], "candidates before their offer"],
  ["disconnected", "candidates", "waits, newer", "disconnected", ["holdCandidates"], "candidates before their offer"],
  ["failed", "candidates", "waits, newer", "failed", ["holdCandidates"], "candidates before their offer"],
  ["checking", "restart offer", "dials, current", "checking", ["handOn"], "an ICE restart"],
  ["checking", "restart offer", "waits, current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart offer", "dials, current", "connected", ["handOn"], "an ICE restart"],
  ["connected", "restart offer", "waits, current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart offer", "dials, current", "disconnected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart offer", "waits, current", "disconnected", ["handOn"], "an ICE restart"],
  ["checking", "restart reply", "dials, current", "checking", ["handOn"], "an ICE restart"],
  ["checking", "restart reply", "waits, current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart reply", "dials, current", "connected", ["handOn"], "an ICE restart"],
  ["connected", "restart reply", "waits, current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart reply", "dials, current", "disconnected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart reply", "waits, current", "disconnected", ["handOn"], "an ICE restart"],
  ["waiting", "restart offer", "waits, newer", "waiting", ["disown"], "nothing is known of this connection"],
  ["answering", "restart offer", "waits, newer", "answering", ["disown"], "nothing is known of this connection"],
  ["checking", "restart offer", "waits, newer", "checking", ["disown"], "nothing is known of this connection"],
  ["connected", "restart offer", "waits, newer", "connected", ["disown"], "nothing is known of this connection"],
  ["disconnected", "restart offer", "waits, newer", "disconnected", ["disown"], "nothing is known of this connection"],
  ["failed", "restart offer", "waits, newer", "failed", ["disown"], "nothing is known of this connection"],
  ["waiting", "restart offer", "waits, current", "waiting", ["disown"], "this connection is over"],
  ["failed", "restart offer", "waits, current", "failed", ["disown"], "this connection is over"],
  ["waiting", "restart offer", "waits, older", "waiting", ["replyStale"], "an epoch that is over"],
  ["answering", "restart offer", "waits, older", "answering", ["replyStale"], "an epoch that is over"],
  ["checking", "restart offer", "waits, older", "checking", ["replyStale"], "an epoch that is over"],
  ["connected", "restart offer", "waits, older", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "restart offer", "waits, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "restart offer", "waits, older", "failed", ["replyStale"], "an epoch that is over"],
  ["answering", "restart offer", "waits, current", "answering", [], "before the answer"],
  ["offered", "restart offer", "dials, current", "offered", [], "before the answer"],
  ["offering", "restart offer", "dials, newer", "offering", [], "dialling already"],
  ["offered", "restart offer", "dials, newer", "offered", [], "dialling already"],
  ["checking", "restart offer", "dials, newer", "checking", [], "dialling already"],
  ["connected", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["disconnected", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["failed", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["offering", "restart offer", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "restart offer", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "restart offer", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "restart offer", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "restart offer", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "restart offer", "dials, older", "failed", [], "an epoch that is over"],
  ["failed", "restart offer", "dials, current", "failed", [], "an attempt that failed"],
  ["offering", "restart reply", "dials, older", "offering", [], "not of this connection"],
  ["offering", "restart reply", "dials, newer", "offering", [], "not of this connection"],
  ["offered", "restart reply", "dials, older", "offered", [], "not of this connection"],
  ["offered", "restart reply", "dials, newer", "offered", [], "not of this connection"],
  ["checking", "restart reply", "dials, older", "checking", [], "not of this connection"],
  ["checking", "restart reply", "dials, newer", "checking", [], "not of this connection"],
  ["connected", "restart reply", "dials, older", "connected", [], "not of this connection"],
  ["connected", "restart reply", "dials, newer", "connected", [], "not of this connection"],
  ["disconnected", "restart reply", "dials, older", "disconnected", [], "not of this connection"],
  ["disconnected", "restart reply", "dials, newer", "disconnected", [], "not of this connection"],
  ["failed", "restart reply", "dials, older", "failed", [], "not of this connection"],
  ["failed", "restart reply", "dials, newer", "failed", [], "not of this connection"],
  ["waiting", "restart reply", "waits, older", "waiting", [], "not of this connection"],
  ["waiting", "restart reply", "waits, newer", "waiting", [], "not of this connection"],
  ["answering", "restart reply", "waits, older", "answering", [], "not of this connection"],
  ["answering", "restart reply", "waits, newer", "answering", [], "not of this connection"],
  ["checking", "restart reply", "waits, older", "checking", [], "not of this connection"],
  ["checking", "restart reply", "waits, newer", "checking", [], "not of this connection"],
  ["connected", "restart reply", "waits, older", "connected", [], "not of this connection"],
  ["connected", "restart reply", "waits, newer", "connected", [], "not of this connection"],
  ["disconnected", "restart reply", "waits, older", "disconnected", [], "not of this connection"],
  ["disconnected", "restart reply", "waits, newer", "disconnected", [], "not of this connection"],
  ["failed", "restart reply", "waits, older", "failed", [], "not of this connection"],
  ["failed", "restart reply", "waits, newer", "failed", [], "not of this connection"],
  ["offered", "restart reply", "dials, current", "offered", [], "not of this connection"],
  ["failed", "restart reply", "dials, current", "failed", [], "not of this connection"],
  ["answering", "restart reply", "waits, current", "answering", [], "not of this connection"],
  ["waiting", "restart reply", "waits, current", "waiting", [], "not of this connection"],
  ["failed", "restart reply", "waits, current", "failed", [], "not of this connection"],
  ["failed", "dial", "dials, older", "offering", ["dial"], "the other side asks: {}"],
  ["failed", "dial", "dials, current", "offering", ["dial"], "the other side asks: {}"],
  ["failed", "dial", "dials, newer", "offering", ["dial"], "the other side asks: {}"],
  ["offering", "dial", "dials, older", "offering", [], "dialling already"],
  ["offered", "dial", "dials, older", "offered", [], "dialling already"],
  ["checking", "dial", "dials, older", "checking", [], "dialling already"],
  ["connected", "dial", "dials, older", "connected", [], "dialling already"],
  ["disconnected", "dial", "dials, older", "disconnected", [], "dialling already"],
  ["offering", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["offered", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["checking", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["connected", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["disconnected", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["offering", "dial", "dials, current", "offering", [], "dialling already"],
  ["offering", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offered", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["checking", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["connected", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["disconnected", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["failed", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offering", "stale", "dials, current", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offered", "stale", "dials, current", "offering", ["dial"], "the other side is ahead of our offer"],
  ["checking", "stale", "dials, current", "checking", [], "an offer that is over"],
  ["connected", "stale", "dials, current", "connected", [], "an offer that is over"],
  ["disconnected", "stale", "dials, current", "disconnected", [], "an offer that is over"],
  ["failed", "stale", "dials, current", "failed", [], "an attempt that failed"],
  ["offering", "stale", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "stale", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "stale", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "stale", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "stale", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "stale", "dials, older", "failed", [], "an epoch that is over"],
  ["waiting", "stale", "waits, older", "waiting", [], "the other side is to dial"],
  ["waiting", "stale", "waits, current", "waiting", [], "the other side is to dial"],
  ["waiting", "stale", "waits, newer", "waiting", [], "the other side is to dial"],
  ["answering", "stale", "waits, older", "answering", [], "the other side is to dial"],
  ["answering", "stale", "waits, current", "answering", [], "the other side is to dial"],
  ["answering", "stale", "waits, newer", "answering", [], "the other side is to dial"],
  ["checking", "stale", "waits, older", "checking", [], "the other side is to dial"],
  ["checking", "stale", "waits, current", "checking", [], "the other side is to dial"],
  ["checking", "stale", "waits, newer", "checking", [], "the other side is to dial"],
  ["connected", "stale", "waits, older", "connected", [], "the other side is to dial"],
  ["connected", "stale", "waits, current", "connected", [], "the other side is to dial"],
  ["connected", "stale", "waits, newer", "connected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, older", "disconnected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, current", "disconnected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, newer", "disconnected", [], "the other side is to dial"],
  ["failed", "stale", "waits, older", "failed", [], "the other side is to dial"],
  ["failed", "stale", "waits, current", "failed", [], "the other side is to dial"],
  ["failed", "stale", "waits, newer", "failed", [], "the other side is to dial"],
  ["offering", "offer made", "current", "offered", ["sendOffer"], "offer sent"],
  ["answering", "answer made", "current", "checking", ["sendAnswer"], "answer sent"],
  ["checking", "opened", "current", "connected", [], "connected"],
  ["disconnected", "heard", "current", "connected", [], "heard again"],
  ["offering", "candidates found", "current", "offering", ["trickle"], "candidates"],
  ["offered", "candidates found", "current", "offered", ["trickle"], "candidates"],
  ["answering", "candidates found", "current", "answering", ["trickle"], "candidates"],
  ["checking", "candidates found", "current", "checking", ["trickle"], "candidates"],
  ["connected", "candidates found", "current", "connected", ["trickle"], "candidates"],
  ["disconnected", "candidates found", "current", "disconnected", ["trickle"], "candidates"],
  ["offering", "selected", "current", "offering", ["select"], "a candidate pair was selected"],
  ["offered", "selected", "current", "offered", ["select"], "a candidate pair was selected"],
  ["answering", "selected", "current", "answering", ["select"], "a candidate pair was selected"],
  ["checking", "selected", "current", "checking", ["select"], "a candidate pair was selected"],
  ["connected", "selected", "current", "connected", ["select"], "a candidate pair was selected"],
  ["disconnected", "selected", "current", "disconnected", ["select"], "a candidate pair was selected"],
  ["checking", "restart report", "current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart report", "current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart report", "current", "disconnected", ["handOn"], "an ICE restart"],
  ["waiting", "offer made", "older", "waiting", [], "a connection that is gone"],
  ["offering", "offer made", "older", "offering", [], "a connection that is gone"],
  ["offered", "offer made", "older", "offered", [], "a connection that is gone"],
  ["answering", "offer made", "older", "answering", [], "a connection that is gone"],
  ["checking", "offer made", "older", "checking", [], "a connection that is gone"],
  ["connected", "offer made", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "offer made", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "offer made", "older", "failed", [], "a connection that is gone"],
  ["closed", "offer made", "older", "closed", [], "a connection that is gone"],
  ["waiting", "offer made", "current", "waiting", [], "a connection that is gone"],
  ["failed", "offer made", "current", "failed", [], "a connection that is gone"],
  ["closed", "offer made", "current", "closed", [], "a connection that is gone"],
  ["waiting", "answer made", "older", "waiting", [], "a connection that is gone"],
  ["offering", "answer made", "older", "offering", [], "a connection that is gone"],
  ["offered", "answer made", "older", "offered", [], "a connection that is gone"],
  ["answering", "answer made", "older", "answering", [], "a connection that is gone"],
  ["checking", "answer made", "older", "checking", [], "a connection that is gone"],
  ["connected", "answer made", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "answer made", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "answer made", "older", "failed", [], "a connection that is gone"],
  ["closed", "answer made", "older", "closed", [], "a connection that is gone"],
  ["waiting", "answer made", "current", "waiting", [], "a connection that is gone"],
  ["failed", "answer made", "current", "failed", [], "a connection that is gone"],
  ["closed", "answer made", "current", "closed", [], "a connection that is gone"],
  ["waiting", "opened", "older", "waiting", [], "a connection that is gone"],
  ["offering", "opened", "older", "offering", [], "a connection that is gone"],
  ["offered", "opened", "older", "offered", [], "a connection that is gone"],
  ["answering", "opened", "older", "answering", [], "a connection that is gone"],
  ["checking", "opened", "older", "checking", [], "a connection that is gone"],
  ["connected", "opened", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "opened", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "opened", "older", "failed", [], "a connection that is gone"],
  ["closed", "opened", "older", "closed", [], "a connection that is gone"],
  ["waiting", "opened", "current", "waiting", [], "a connection that is gone"],
  ["failed", "opened", "current", "failed", [], "a connection that is gone"],
  ["closed", "opened", "current", "closed", [], "a connection that is gone"],
  ["waiting", "lost", "older", "waiting", [], "a connection that is gone"],
  ["offering", "lost", "older", "offering", [], "a connection that is gone"],
  ["offered", "lost", "older", "offered", [], "a connection that is gone"],
  ["answering", "lost", "older", "answering", [], "a connection that is gone"],
  ["checking", "lost", "older", "checking", [], "a connection that is gone"],
  ["connected", "lost", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "lost", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "lost", "older", "failed", [], "a connection that is gone"],
  ["closed", "lost", "older", "closed", [], "a connection that is gone"],
  ["waiting", "lost", "current", "waiting", [], "a connection that is gone"],
  ["failed", "lost", "current", "failed", [], "a connection that is gone"],
  ["closed", "lost", "current", "closed", [], "a connection that is gone"],
  ["waiting", "path lost", "older", "waiting", [], "a connection that is gone"],
  ["offering", "path lost", "older", "offering", [], "a connection that is gone"],
  ["offered", "path lost", "older", "offered", [], "a connection that is gone"],
  ["answering", "path lost", "older", "answering", [], "a connection that is gone"],
  ["checking", "path lost", "older", "checking", [], "a connection that is gone"],
  ["connected", "path lost", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "path lost", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "path lost", "older", "failed", [], "a connection that is gone"],
  ["closed", "path lost", "older", "closed", [], "a connection that is gone"],
  ["waiting", "path lost", "current", "waiting", [], "a connection that is gone"],
  ["failed", "path lost", "current", "failed", [], "a connection that is gone"],
  ["closed", "path lost", "current", "closed", [], "a connection that is gone"],
  ["waiting", "operation failed", "older", "waiting", [], "a connection that is gone"],
  ["offering", "operation failed", "older", "offering", [], "a connection that is gone"],
  ["offered", "operation failed", "older", "offered", [], "a connection that is gone"],
  ["answering", "operation failed", "older", "answering", [], "a connection that is gone"],
  ["checking", "operation failed", "older", "checking", [], "a connection that is gone"],
  ["connected", "operation failed", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "operation failed", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "operation failed", "older", "failed", [], "a connection that is gone"],
  ["closed", "operation failed", "older", "closed", [], "a connection that is gone"],
  ["waiting", "operation failed", "current", "waiting", [], "a connection that is gone"],
  ["failed", "operation failed", "current", "failed", [], "a connection that is gone"],
  ["closed", "operation failed", "current", "closed", [], "a connection that is gone"],
  ["waiting", "candidates found", "older", "waiting", [], "a connection that is gone"],
  ["offering", "candidates found", "older", "offering", [], "a connection that is gone"],
  ["offered", "candidates found", "older", "offered", [], "a connection that is gone"],
  ["answering", "candidates found", "older", "answering", [], "a connection that is gone"],
  ["checking", "candidates found", "older", "checking", [], "a connection that is gone"],
  ["connected", "candidates found", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "candidates found", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "candidates found", "older", "failed", [], "a connection that is gone"],
  ["closed", "candidates found", "older", "closed", [], "a connection that is gone"],
  ["waiting", "candidates found", "current", "waiting", [], "a connection that is gone"],
  ["failed", "candidates found", "current", "failed", [], "a connection that is gone"],
  ["closed", "candidates found", "current", "closed", [], "a connection that is gone"],
  ["waiting", "selected", "older", "waiting", [], "a connection that is gone"],
  ["offering", "selected", "older", "offering", [], "a connection that is gone"],
  ["offered", "selected", "older", "offered", [], "a connection that is gone"],
  ["answering", "selected", "older", "answering", [], "a connection that is gone"],
  ["checking", "selected", "older", "checking", [], "a connection that is gone"],
  ["connected", "selected", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "selected", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "selected", "older", "failed", [], "a connection that is gone"],
  ["closed", "selected", "older", "closed", [], "a connection that is gone"],
  ["waiting", "selected", "current", "waiting", [], "a connection that is gone"],
  ["failed", "selected", "current", "failed", [], "a connection that is gone"],
  ["closed", "selected", "current", "closed", [], "a connection that is gone"],
  ["waiting", "restart report", "older", "waiting", [], "a connection that is gone"],
  ["offering", "restart report", "older", "offering", [], "a connection that is gone"],
  ["offered", "restart report", "older", "offered", [], "a connection that is gone"],
  ["answering", "restart report", "older", "answering", [], "a connection that is gone"],
  ["checking", "restart report", "older", "checking", [], "a connection that is gone"],
  ["connected", "restart report", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "restart report", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "restart report", "older", "failed", [], "a connection that is gone"],
  ["closed", "restart report", "older", "closed", [], "a connection that is gone"],
  ["waiting", "restart report", "current", "waiting", [], "a connection that is gone"],
  ["failed", "restart report", "current", "failed", [], "a connection that is gone"],
  ["closed", "restart report", "current", "closed", [], "a connection that is gone"],
  ["connected", "silence", "", "disconnected", ["restart"], "nothing heard for {} s"],
  ["connected", "path lost", "current", "disconnected", ["restart"], "path lost: {}"],
  ["checking", "path lost", "current", "checking", ["restart"], "path lost: {}"],
  ["disconnected", "path lost", "current", "disconnected", ["restart"], "path lost: {}"],
  ["offering", "path lost", "current", "offering", [], "nothing goes over it yet"],
  ["offered", "path lost", "current", "offered", [], "nothing goes over it yet"],
  ["answering", "path lost", "current", "answering", [], "nothing goes over it yet"],
  ["checking", "restart", "", "checking", ["restartAnew"], "{}"],
  ["connected", "restart", "", "connected", ["restartAnew"], "{}"],
  ["disconnected", "restart", "", "disconnected", ["restartAnew"], "{}"],
  ["offering", "restart", "", "offering", ["restartLater"], "{}"],
  ["offered", "restart", "", "offered", ["restartLater"], "{}"],
  ["answering", "restart", "", "answering", ["restartLater"], "{}"],
  ["new", "restart", "", "new", [], "no connection to restart"],
  ["waiting", "restart", "", "waiting", [], "no connection to restart"],
  ["failed", "restart", "", "failed", [], "no connection to restart"],
  ["closed", "restart", "", "closed", [], "no connection to restart"],
  ["checking", "deadline", "dials, not restarted", "checking", ["extend", "restart"], "not connected within {} s"],
  ["checking", "deadline", "waits, not restarted", "checking", ["extend"], "not connected within {} s"],
  ["offering", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["offered", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["checking", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["offering", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["offered", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["checking", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["answering", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "not connected within {} s"],
  ["checking", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "not connected within {} s"],
  ["answering", "deadline", "waits, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["checking", "deadline", "waits, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["disconnected", "deadline", "dials, first", "offering", ["countFailure", "dial"], "did not come back within {} s"],
  ["disconnected", "deadline", "dials, again", "failed", ["countFailure", "drop"], "did not come back within {} s"],
  ["disconnected", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "did not come back within {} s"],
  ["disconnected", "deadline", "waits, again", "failed", ["countFailure", "drop"], "did not come back within {} s"],
  ["offering", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["offered", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["checking", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["connected", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["disconnected", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["offering", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["offered", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["checking", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["connected", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["disconnected", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["answering", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["checking", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["connected", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["disconnected", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["answering", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["checking", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["connected", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["disconnected", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["offering", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["offered", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["checking", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["connected", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["disconnected", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["offering", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["offered", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["checking", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["connected", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["disconnected", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["answering", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["checking", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["connected", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["disconnected", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["answering", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["checking", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["connected", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["disconnected", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["offered", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["checking", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["connected", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["disconnected", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["offered", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["checking", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["connected", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["disconnected", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["waiting", "deadline", "waits, first", "failed", ["countFailure", "ask"], "not dialled within {} s"],
  ["waiting", "deadline", "waits, again", "failed", ["countFailure", "ask"], "not dialled within {} s"],
  ["failed", "deadline", "dials, again", "offering", ["dial"], "trying again"],
  ["failed", "deadline", "waits, again", "failed", ["ask", "waitMore"], "asking again"],
  ["failed", "deadline", "unreachable", "failed", ["waitMore"], "no signalling to the peer"],
  ["failed", "reachable", "dials", "offering", ["dial"], "signalling is back"],
  ["waiting", "reachable", "waits", "waiting", ["ask"], "signalling is back"],
  ["failed", "reachable", "waits", "failed", ["ask"], "signalling is back"],
  ["checking", "reachable", "dials", "checking", ["restartNow"], "signalling is back"],
  ["checking", "reachable", "waits", "checking", ["restartNow"], "signalling is back"],
  ["connected", "reachable", "dials", "connected", ["restartNow"], "signalling is back"],
  ["connected", "reachable", "waits", "connected", ["restartNow"], "signalling is back"],
  ["disconnected", "reachable", "dials", "disconnected", ["restartNow"], "signalling is back"],
  ["disconnected", "reachable", "waits", "disconnected", ["restartNow"], "signalling is back"],
  ["offering", "reachable", "dials", "offering", [], "nothing to mend"],
  ["offered", "reachable", "dials", "offered", [], "nothing to mend"],
  ["answering", "reachable", "waits", "answering", [], "nothing to mend"],
  ["new", "close", "", "closed", ["drop"], "{}"],
  ["waiting", "close", "", "closed", ["drop"], "{}"],
  ["offering", "close", "", "closed", ["drop"], "{}"],
  ["offered", "close", "", "closed", ["drop"], "{}"],
  ["answering", "close", "", "closed", ["drop"], "{}"],
  ["checking", "close", "", "closed", ["drop"], "{}"],
  ["connected", "close", "", "closed", ["drop"], "{}"],
  ["disconnected", "close", "", "closed", ["drop"], "{}"],
  ["failed", "close", "", "closed", ["drop"], "{}"],
  ["closed", "close", "", "closed", ["drop"], "{}"],
  // </generated>
];
const LINK_ROWS = new Map(LINK_TABLE.map((row) => [`${row[0]}, ${row[1]}, ${row[2]}`, row]));

/** @type {ReadonlySet<LinkState>} */
const UP = new Set(["connected", "disconnected"]);
/** @type {ReadonlySet<LinkState>} */
const ATTEMPTING = new Set(["offering", "offered", "answering", "checking"]);
/** @type {ReadonlySet<LinkState>} */
const HAS_CONNECTION = new Set([...ATTEMPTING, ...UP]);
/** @type {ReadonlySet<LinkState>} */
const HAS_NONE = new Set(["waiting", "failed", "closed"]);
/** @type {ReadonlySet<LinkInput>} */
const LINK_FROM_PEER = new Set(["offer", "answer", "candidates", "dial", "stale", "restart offer", "restart reply"]);
/** @type {Record<LinkMessage["kind"], LinkInput>} */
const LINK_TAG = { Offer: "offer", Answer: "answer", Candidates: "candidates", Dial: "dial", Stale: "stale" };

// Half of what the schema takes. The other side can't bring us beyond it, and the attempts of our
// own that are left then last for decades: so no two attempts ever have the same epoch.
const MAX_REMOTE_EPOCH = 2 ** 30;
// An attempt costs a connection; the other side can't make us begin more than these in a row, and
// one a second after that.
const BEGINS = new Set(["dial", "answer"]);
const BEGIN_BURST = 10;
// What brings candidates of the other side, which are at most MAX_CANDIDATES in one attempt.
const ADDS = new Set(["answer", "acceptAnswer", "addCandidates", "holdCandidates"]);

// --- outputs and values --------------------------------------------------------------------------

/**
 * Send a check over the connection of this epoch; report PONG when it is answered.
 * @typedef {{kind: "Ping", epoch: number, nonce: number}} LinkPing
 */
/**
 * The state has changed.
 * @typedef {{kind: "StateChanged", previous: LinkState, state: LinkState, reason: string}} StateChanged
 */
/**
 * Another pair carries data, or another generation.
 * @typedef {{kind: "PairSelected", reason: string}} PairSelected
 */
/** @typedef {Operate | SendSignal | LinkPing | StateChanged | PairSelected | Refuse} LinkOutput */

/**
 * One end of a candidate pair. `type`: `host`, `srflx`, `prflx` or `relay` (RFC 8445, section
 * 5.1.1). `server`, for a local `relay` candidate: the URL of its TURN server.
 * @typedef {{kind: "CandidateInfo", type: string, address: string, port: number, server: string | null}} CandidateInfo
 */
/**
 * Where data goes from and to (RFC 8445, section 4).
 * @typedef {{kind: "CandidatePair", local: CandidateInfo, remote: CandidateInfo}} CandidatePair
 */

/**
 * How data flows over a pair.
 * @param {CandidatePair} pair
 * @returns {"direct" | "turn"}
 */
export function pathOf(pair) {
  return pair.local.type === "relay" || pair.remote.type === "relay" ? "turn" : "direct";
}

/**
 * What came of a link, from when its two incarnations first met.
 * @typedef {object} History
 * @property {"History"} kind
 * @property {number} attempts  connections that were begun
 * @property {number} connections  how many of them connected
 * @property {number} withdrawn  how many of them were under way when one of the two was gone
 * @property {number} connectTime  seconds from the beginning of an attempt to its success, of all
 *   together
 * @property {number} restarts  ICE restarts that took over
 * @property {number} fallbacks  how often data went over to the relay; kept by the node
 * @property {string} failure  why the latest attempt, ICE restart or path that failed did
 */

/** @returns {History} */
export function newHistory() {
  return {
    kind: "History",
    attempts: 0,
    connections: 0,
    withdrawn: 0,
    connectTime: 0,
    restarts: 0,
    fallbacks: 0,
    failure: "",
  };
}

/**
 * What a link takes of the settings (MeshConfig). Times are seconds.
 * @typedef {object} LinkConfig
 * @property {"all" | "relay"} iceTransportPolicy
 * @property {number} connectTimeout
 * @property {number} candidatesTimeout
 * @property {number} restartTimeout
 * @property {number} upgradeFirst
 * @property {number} upgradeMax
 * @property {number} retryFirst
 * @property {number} retryMax
 * @property {number} pingInterval
 * @property {number} silenceTimeout
 * @property {number} disconnectedTimeout
 * @property {number} stableAfter
 */

/** @typedef {{epoch: number, message: LinkMessage}} LinkSignal */
/** @typedef {(restart: Restart) => RestartOutput[]} RestartCall */

// --- the machine ---------------------------------------------------------------------------------

/** The state machine of one link. See the top of this part for how it works. */
export class Link {
  /** @type {LinkState} */
  state = "new";
  /** This side has the smaller id. */
  dials;
  /** The number of the latest attempt. */
  epoch;
  /** Whether signals get to the peer; kept by the node. */
  reachable = true;
  /** Whether the relay carries what this link does not; kept by the node. */
  carried = false;
  /**
   * The latest measured round trip in seconds.
   * @type {number | null}
   */
  rtt = null;
  history;
  /**
   * What data goes over, as far as the connection of this epoch has said.
   * @type {CandidatePair | null}
   */
  pair = null;
  /** The ICE generation that carries data. */
  generation = 0;

  #config;
  #incarnation;
  #random;
  #deadlines = new Deadlines();
  #backoff;
  #upgrade;
  #failures = 0;
  #recovering = false;
  // When it was pinged for the first time since it was heard.
  /** @type {number | null} */
  #askedAt = null;
  #heardAt = 0;
  #spokeAt = 0;
  #pingNonce = 0;
  /** @type {number | null} */
  #pingedAt = null;
  #begins = BEGIN_BURST;
  #beginsAt = 0;
  #begunAt = 0;
  #disconnectedAt = 0;
  // Of this attempt: the candidates of its first generation, its restarts, why another one is to
  // begin as soon as it can, and whether it was given time for one.
  #trickle;
  #restart;
  /** @type {string | null} */
  #wanted = null;
  #extended = false;
  /**
   * Candidates that overtook the offer of this epoch.
   * @type {{epoch: number, candidates: IceCandidate[], end: boolean} | null}
   */
  #held = null;
  /** @type {LinkOutput[]} */
  #out = [];
  /** @type {unknown} */
  #arg = null;
  #detail = "";

  /**
   * @param {LinkConfig} config
   * @param {object} options
   * @param {boolean} options.dials  this side has the smaller id
   * @param {string} options.incarnation  ours
   * @param {() => number} options.random  gives numbers in [0, 1) for the jitter
   * @param {number} [options.epoch]  where an earlier link between the same two incarnations ended
   * @param {History | null} [options.history]  what came of that one
   */
  constructor(config, { dials, incarnation, random, epoch = 0, history = null }) {
    this.dials = dials;
    this.epoch = epoch;
    this.history = history ?? newHistory();
    this.#config = config;
    this.#incarnation = incarnation;
    this.#random = random;
    this.#backoff = new Backoff(config.retryFirst, config.retryMax, 0.5);
    this.#upgrade = new Backoff(config.upgradeFirst, config.upgradeMax, 0);
    this.#trickle = new Trickle(epoch, 0, config.candidatesTimeout);
    this.#restart = this.#newRestart();
  }

  // --- what the shell reads ---

  /**
   * The state in the words of the public interface.
   * @returns {"new" | "connecting" | "connected" | "disconnected" | "failed" | "closed"}
   */
  get peerState() {
    switch (this.state) {
      case "connected":
      case "failed":
      case "closed":
        return this.state;
    }
    if (this.#recovering) return "disconnected";
    const begun = this.epoch !== 0 || (this.state !== "new" && this.state !== "waiting");
    return begun ? "connecting" : "new";
  }

  /** Whether a direct path exists, or did until a moment ago. */
  get alive() {
    return UP.has(this.state);
  }

  /** How many attempts failed, in all epochs. */
  get failures() {
    const { attempts, connections, withdrawn } = this.history;
    return attempts - this.#underWay - connections - withdrawn;
  }

  /** How many attempts are under way: one or none. */
  get #underWay() {
    return ATTEMPTING.has(this.state) ? 1 : 0;
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return earliest(this.#deadlines.next(), this.#trickle.completeAt, this.#restart.nextDeadline());
  }

  // --- inputs ---

  /**
   * Begin: dial, or wait to be dialled.
   * @param {number} now
   */
  start(now) {
    return this.#feed("start", this.#role, now);
  }

  /**
   * A signal of the remote incarnation arrived.
   * @param {number} epoch
   * @param {LinkMessage} message
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  message(epoch, message, now) {
    let on = LINK_TAG[message.kind];
    let detail = "";
    switch (message.kind) {
      case "Offer":
      case "Answer":
      case "Candidates":
        if (message.generation) on = message.kind === "Offer" ? "restart offer" : "restart reply";
        break;
      case "Stale":
        epoch = message.epoch;
        break;
      case "Dial": {
        detail = message.reason;
        const answered = HAS_CONNECTION.has(this.state) && this.state !== "offering";
        if (this.dials && epoch === this.epoch && answered) return this.#failure(on, epoch, detail, now);
        break;
      }
    }
    if (epoch > MAX_REMOTE_EPOCH) {
      const text = `epoch ${epoch} is beyond ${MAX_REMOTE_EPOCH}`;
      return [{ kind: "Refuse", error: new ProtocolError(text, { code: "bad_epoch", field: "$.epoch" }) }];
    }
    const age = epoch < this.epoch ? "older" : epoch === this.epoch ? "current" : "newer";
    return this.#feed(on, `${this.#role}, ${age}`, now, { arg: { epoch, message }, detail });
  }

  /**
   * `MakeOffer` is done.
   * @param {number} epoch
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  offerMade(epoch, generation, sdp, now) {
    if (generation) return this.#report(epoch, (it) => it.offerMade(generation, sdp, now), now);
    return this.#feed("offer made", this.#age(epoch), now, { arg: sdp });
  }

  /**
   * `AcceptOffer` is done.
   * @param {number} epoch
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  answerMade(epoch, generation, sdp, now) {
    if (generation) return this.#report(epoch, (it) => it.answerMade(generation, sdp, now), now);
    return this.#feed("answer made", this.#age(epoch), now, { arg: sdp });
  }

  /**
   * An operation did not succeed. Candidates that can't be used change nothing, and an ICE restart
   * that failed ends that restart alone.
   * @param {number} epoch
   * @param {Operation} operation
   * @param {Error} error  a MeshError
   * @param {number} now
   */
  operationFailed(epoch, operation, error, now) {
    /** @type {LinkOutput[]} */
    const out = error instanceof ProtocolError ? [{ kind: "Refuse", error }] : [];
    if (operation.kind === "AddCandidates") return out;
    const generation = operation.kind === "CloseConnection" ? 0 : operation.generation;
    if (generation) out.push(...this.#report(epoch, (it) => it.operationFailed(generation, now), now));
    else out.push(...this.#failure("operation failed", epoch, error.message, now));
    return out;
  }

  /**
   * The connection found candidates of its own. They follow their description.
   * @param {number} epoch
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {{end: boolean, now: number}} options
   */
  localCandidates(epoch, generation, candidates, { end, now }) {
    const arg = { generation, candidates, end };
    return this.#feed("candidates found", this.#age(epoch), now, { arg });
  }

  /**
   * Data goes over this pair from now on.
   * @param {number} epoch
   * @param {number} generation
   * @param {CandidatePair} pair
   * @param {number} now
   */
  selected(epoch, generation, pair, now) {
    return this.#feed("selected", this.#age(epoch), now, { arg: { generation, pair } });
  }

  /**
   * The message channel is open.
   * @param {number} epoch
   * @param {number} now
   */
  opened(epoch, now) {
    return this.#feed("opened", this.#age(epoch), now);
  }

  /**
   * The connection is over.
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  lost(epoch, reason, now) {
    return this.#failure("lost", epoch, reason, now);
  }

  /**
   * What data went over has ended; the connection waits for another generation.
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  pathLost(epoch, reason, now) {
    return this.#feed("path lost", this.#age(epoch), now, { detail: reason });
  }

  /**
   * Something arrived over the connection. Called for every frame.
   * @param {number} epoch
   * @param {number} now
   * @param {{answered?: boolean}} [options]  `answered`: the other side has heard of us as well
   * @returns {LinkOutput[]}
   */
  heard(epoch, now, { answered = false } = {}) {
    if (epoch !== this.epoch) return [];
    this.#heardAt = now;
    this.#askedAt = null;
    if (answered) this.#spokeAt = now;
    return this.state === "disconnected" ? this.#feed("heard", "current", now) : [];
  }

  /**
   * A frame was sent over the connection: no ping is needed for a while.
   * @param {number} now
   */
  spoke(now) {
    this.#spokeAt = now;
  }

  /**
   * The answer to a ping arrived. It is a sign of life even if nobody waits for it.
   * @param {number} epoch
   * @param {number} nonce
   * @param {number} now
   */
  pong(epoch, nonce, now) {
    if (epoch === this.epoch && nonce === this.#pingNonce && this.#pingedAt !== null) {
      this.rtt = now - this.#pingedAt;
      this.#pingedAt = null;
    }
    return this.heard(epoch, now);
  }

  /**
   * Measure the round trip now.
   * @param {number} now
   * @returns {LinkPing}
   */
  ping(now) {
    this.#pingNonce = (this.#pingNonce + 1) & 0x7fffffff;
    this.#pingedAt = this.#spokeAt = now;
    this.#askedAt ??= now;
    return { kind: "Ping", epoch: this.epoch, nonce: this.#pingNonce };
  }

  /**
   * Signals get to the peer, or don't.
   * @param {boolean} reachable
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  setReachable(reachable, now) {
    this.reachable = reachable;
    if (!reachable || this.state === "new" || this.state === "closed") return [];
    return this.#feed("reachable", this.#role, now);
  }

  /**
   * Begin an ICE restart as soon as there is a connection for it.
   *
   * One that is under way is out of date then. Nothing happens while no attempt is under way: the
   * next one has all that a restart would bring.
   * @param {string} reason
   * @param {number} now
   */
  restart(reason, now) {
    return this.#feed("restart", "", now, { detail: reason });
  }

  /**
   * End the link for good.
   * @param {string} reason
   * @param {number} now
   */
  close(reason, now) {
    this.history.withdrawn += this.#underWay;
    return this.#feed("close", "", now, { detail: reason });
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {LinkOutput[]} */
    const out = [];
    for (const [name, at] of this.#deadlines.due(now)) out.push(...this.#due(name, at, now));
    if (isDue(this.#trickle.completeAt, now)) out.push(...this.#trickle.complete());
    if (isDue(this.#restart.nextDeadline(), now)) {
      const underWay = this.#restart.state !== "idle";
      out.push(...this.#toRestart((it) => it.tick(now), now));
      const givenUp = underWay && this.#restart.state === "idle";
      if (givenUp && this.state === "disconnected") out.push(...this.#beginRestart("still disconnected", now));
    }
    return out;
  }

  /**
   * What a deadline brings, unless an earlier one of the same moment has ended the state that it
   * was for.
   * @param {string} name
   * @param {number} at
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #due(name, at, now) {
    const connected = this.state === "connected";
    const disconnected = this.state === "disconnected";
    switch (name) {
      case "ping":
        return this.alive ? this.#pingDue(now) : [];
      case "silence":
        return connected ? this.#silenceDue(at, now) : [];
      case "stable":
        // It has earned a new beginning; one that did not hold is the same trouble going on,
        // however often it connected in between.
        if (connected) {
          this.#failures = 0;
          this.#backoff.reset();
        }
        return [];
      case "again":
        return disconnected ? this.#beginRestart("still disconnected", now) : [];
      case "upgrade": {
        if (!connected) return [];
        const out = this.#beginRestart("looking for a better path", now);
        this.#armUpgrade(now);
        return out;
      }
      case "state":
        return this.#stateDue(now);
      default:
        return [];
    }
  }

  /** @param {number} now */
  #stateDue(now) {
    if (this.state === "failed" && !this.reachable) return this.#feed("deadline", "unreachable", now);
    const timeout = this.#config.connectTimeout;
    if (this.state === "checking" && !this.#extended) {
      return this.#feed("deadline", `${this.#role}, not restarted`, now, { detail: general(timeout) });
    }
    const waited =
      this.state === "disconnected" ? now - this.#disconnectedAt : timeout * (this.#extended ? 2 : 1);
    return this.#failure("deadline", this.epoch, general(waited, 3), now);
  }

  // --- the machine ---

  get #role() {
    return this.dials ? "dials" : "waits";
  }

  /** @param {number} epoch */
  #age(epoch) {
    if (epoch > this.epoch) {
      throw new UnexpectedInput(`epoch ${epoch} has not begun; the link is at ${this.epoch}`);
    }
    return epoch === this.epoch ? "current" : "older";
  }

  /**
   * @param {LinkInput} on
   * @param {number} epoch
   * @param {string} detail
   * @param {number} now
   */
  #failure(on, epoch, detail, now) {
    let condition = this.#age(epoch);
    if (condition === "current" && (on === "deadline" || !HAS_NONE.has(this.state))) {
      condition = `${this.#role}, ${this.#failures ? "again" : "first"}`;
    }
    return this.#feed(on, condition, now, { detail });
  }

  /**
   * @param {LinkInput} on
   * @param {string} condition
   * @param {number} now
   * @param {{arg?: unknown, detail?: string}} [options]
   * @returns {LinkOutput[]}
   */
  #feed(on, condition, now, { arg = null, detail = "" } = {}) {
    const row = LINK_ROWS.get(`${this.state}, ${on}, ${condition}`);
    if (row === undefined) {
      const text = `${on} (${condition || "no condition"}) is not expected in state ${this.state}`;
      if (!LINK_FROM_PEER.has(on)) throw new UnexpectedInput(text);
      return refuse(text, `unexpected_${on.replace(" ", "_")}`, "$.type");
    }
    const [, , , next, actions, reason] = row;
    if (actions.some((action) => ADDS.has(action)) && !this.#fits(/** @type {LinkSignal} */ (arg))) {
      const text = `${on} would bring the attempt to more than ${MAX_CANDIDATES} candidates`;
      return refuse(text, "too_many_candidates", "$");
    }
    const begins = LINK_FROM_PEER.has(on) && actions.some((action) => BEGINS.has(action));
    if (begins && !this.#mayBegin(now)) {
      const text = `${on} would begin another attempt, after too many: one a second is taken`;
      return refuse(text, "too_many_attempts", "$.type");
    }
    this.#arg = arg;
    this.#detail = reason.replace("{}", () => detail);
    this.#out = [];
    for (const action of actions) Link.#ACTIONS[action](this, now);
    this.#setState(next, now);
    const out = this.#out;
    this.#out = [];
    this.#arg = null;
    return out;
  }

  /**
   * @param {LinkState} next
   * @param {number} now
   */
  #setState(next, now) {
    const previous = this.state;
    this.state = next;
    if (previous === next) return;
    const config = this.#config;
    switch (next) {
      case "connected":
        this.#deadlines.clear("state");
        this.#deadlines.clear("again");
        if (previous === "checking") {
          this.#heardAt = now;
          this.#askedAt = null;
          this.history.connections += 1;
          this.history.connectTime += now - this.#begunAt;
          this.#recovering = true;
          // Measured at once, so that users see a round trip from the first moment.
          this.#out.push(this.ping(now));
        }
        this.#deadlines.set("silence", now + config.silenceTimeout);
        this.#deadlines.set("stable", now + config.stableAfter);
        this.#setPing(this.#spokeAt + this.#pingAfter);
        this.#armUpgrade(now);
        break;
      case "checking":
        this.#restartNow(now);
        break;
      case "disconnected":
        this.history.failure = this.#detail;
        this.#disconnectedAt = now;
        this.#deadlines.set("ping", now);
        this.#deadlines.set("state", now + config.disconnectedTimeout);
        break;
      case "waiting":
        this.#deadlines.set("state", now + config.connectTimeout);
        break;
      case "failed":
        this.#recovering = false;
        this.#waitMore(now);
        break;
      case "closed":
        this.#deadlines.clearAll();
        break;
      default: // An attempt has one deadline for all its states; it was set when it began.
    }
    if (next !== "connected") {
      this.#deadlines.clear("silence");
      this.#deadlines.clear("stable");
    }
    if (!UP.has(next)) this.#deadlines.clear("ping");
    this.#out.push({ kind: "StateChanged", previous, state: next, reason: this.#detail });
  }

  get #pingAfter() {
    // Who pings is the one who speaks first: with the answer the other side has spoken too, so it
    // waits a little longer, but never so long that it would be taken for gone.
    const { pingInterval: interval, silenceTimeout: silence } = this.#config;
    if (this.state === "disconnected") return interval / 4; // a path that comes back is noticed soon, by both
    return this.dials ? interval : Math.min(1.5 * interval, (interval + silence) / 2);
  }

  /**
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #pingDue(now) {
    // What was heard is no reason to be silent: the other side may send and send, and hear nothing
    // of us. Nor is what was said a reason not to ask: not all of it is answered.
    const last = this.#askedAt !== null ? this.#spokeAt : Math.min(this.#spokeAt, this.#heardAt);
    const at = last + this.#pingAfter;
    if (at > now) {
      this.#setPing(at);
      return [];
    }
    this.#setPing(now + this.#pingAfter);
    return [this.ping(now)];
  }

  get #grid() {
    // All the links of a page wake it up together, and not one by one.
    const { pingInterval: interval, silenceTimeout: silence } = this.#config;
    return Math.min(interval, silence - interval) / 4;
  }

  /** @param {number} at */
  #setPing(at) {
    const grid = this.#grid;
    let step = Math.ceil(at / grid);
    if (step * grid < at) step += 1; // by a rounding error, but then it would be due for ever
    const due = step * grid;
    this.#deadlines.set("ping", due);
    // Where something was heard lately, the next of these looks whether that is still so.
    const silentAt = this.#heardAt + this.#config.silenceTimeout;
    const watched = this.#deadlines.get("silence") !== null;
    if (this.state === "connected" && silentAt <= due && !watched) this.#deadlines.set("silence", silentAt);
  }

  /**
   * @param {number} at
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #silenceDue(at, now) {
    const silentAt = this.#heardAt + this.#config.silenceTimeout;
    if (silentAt > now) {
      const nextLook = this.#deadlines.get("ping");
      if (nextLook === null || silentAt <= nextLook) this.#deadlines.set("silence", silentAt);
      return [];
    }
    if (now - at > STALL) this.#askedAt = null;
    // Who asks late, as a page that is slowed down, waits as long for the answer as others.
    const answerAt = (this.#askedAt ?? now) + this.#config.silenceTimeout - this.#pingAfter - this.#grid;
    if (answerAt > now) {
      this.#deadlines.set("silence", answerAt);
      return this.#askedAt === null ? [this.ping(now)] : [];
    }
    return this.#feed("silence", "", now, { detail: general(now - this.#heardAt, 3) });
  }

  /**
   * Whether the other side may make us begin an attempt: a token bucket.
   * @param {number} now
   */
  #mayBegin(now) {
    this.#begins = Math.min(BEGIN_BURST, this.#begins + (now - this.#beginsAt));
    this.#beginsAt = now;
    if (this.#begins < 1) return false;
    this.#begins -= 1;
    return true;
  }

  /**
   * Whether the attempt that this message is for may have the candidates in it.
   * @param {LinkSignal} signal
   */
  #fits({ epoch, message }) {
    let more = 0;
    if (message.kind === "Offer" || message.kind === "Answer") more = countCandidates(message.sdp);
    else if (message.kind === "Candidates") more = message.candidates.length;
    if (epoch === this.epoch) return this.#trickle.fits(more);
    if (this.#held?.epoch === epoch) more += this.#held.candidates.length;
    return more <= MAX_CANDIDATES;
  }

  // --- ICE restarts ---

  #newRestart() {
    const mayBegin = (/** @type {number} */ now) => this.#mayBegin(now);
    return new Restart(this.#config, { epoch: this.epoch, dials: this.dials, mayBegin });
  }

  /**
   * @param {number} epoch
   * @param {RestartCall} call
   * @param {number} now
   */
  #report(epoch, call, now) {
    return this.#feed("restart report", this.#age(epoch), now, { arg: call });
  }

  /**
   * @param {string} reason
   * @param {number} now
   * @param {{urgent?: boolean}} [options]
   * @returns {RestartOutput[]}
   */
  #beginRestart(reason, now, { urgent = false } = {}) {
    if (!this.reachable) {
      // Its offer would only wait, and be out of date when it gets there.
      if (urgent || this.#restart.state === "idle") this.#wanted = reason;
      return [];
    }
    this.#wanted = null;
    return this.#toRestart((it) => it.begin(reason, now, { urgent }), now);
  }

  /**
   * @param {RestartCall} call
   * @param {number} now
   */
  #toRestart(call, now) {
    const restart = this.#restart;
    const config = this.#config;
    const previous = restart.state;
    const out = call(restart);
    if (restart.givenUp) {
      this.history.failure = `ICE restart ${restart.givenUp}`;
      restart.givenUp = "";
    }
    if (this.state === "disconnected" && restart.state !== previous) {
      if (restart.state === "checking") {
        // It was answered: it gets the time that it may take, if that is more; but only once over,
        // or restarts that are answered and lead nowhere could go on for ever.
        const latest = this.#disconnectedAt + config.disconnectedTimeout;
        const at = Math.min(now, latest) + config.connectTimeout;
        this.#deadlines.set("state", Math.max(at, this.#deadlines.get("state") ?? at));
      } else if (restart.state === "idle") {
        this.#deadlines.set("again", now + config.restartTimeout);
      }
    }
    return out;
  }

  /**
   * A path over TURN is a reason to look for a better one, now and then.
   * @param {number} now
   */
  #armUpgrade(now) {
    if (this.pair === null || pathOf(this.pair) !== "turn") {
      this.#upgrade.reset();
      this.#deadlines.clear("upgrade");
    } else if (
      this.dials &&
      this.state === "connected" &&
      this.#config.iceTransportPolicy === "all" &&
      this.#deadlines.get("upgrade") === null
    ) {
      this.#deadlines.set("upgrade", now + this.#upgrade.next(0));
    }
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Link, now: number) => void>} */
  static #ACTIONS = {
    dial: (it, now) => it.#dial(now),
    answer: (it, now) => it.#answer(now),
    drop: (it) => it.#drop(),
    sendOffer: (it) => it.#sendDescription("Offer"),
    sendAnswer: (it) => it.#sendDescription("Answer"),
    acceptAnswer: (it, now) => it.#acceptAnswer(now),
    addCandidates: (it, now) => it.#addCandidates(now),
    holdCandidates: (it) => it.#holdCandidates(),
    trickle: (it, now) => it.#trickleFound(now),
    select: (it, now) => it.#select(now),
    handOn: (it, now) => it.#handOn(now),
    disown: (it) => it.#disown(),
    restart: (it, now) => it.#out.push(...it.#beginRestart(it.#detail, now)),
    restartAnew: (it, now) => it.#out.push(...it.#beginRestart(it.#detail, now, { urgent: true })),
    restartLater: (it) => (it.#wanted = it.#detail),
    restartNow: (it, now) => it.#restartNow(now),
    extend: (it, now) => it.#extend(now),
    ask: (it) => it.#send(it.epoch, { kind: "Dial", reason: printable(it.#detail, 200) }),
    replyStale: (it) => it.#send(it.epoch, { kind: "Stale", incarnation: it.#incarnation, epoch: it.epoch }),
    countFailure: (it) => it.#countFailure(),
    waitMore: (it, now) => it.#waitMore(now),
  };

  /**
   * @param {number} epoch
   * @param {Operation} operation
   * @param {number} now
   */
  #begin(epoch, operation, now) {
    this.#drop();
    this.epoch = epoch;
    this.history.attempts += 1;
    this.#begunAt = now;
    this.#forget();
    this.#deadlines.set("state", now + this.#config.connectTimeout);
    this.#operate(operation);
  }

  /** What belonged to one attempt alone. */
  #forget() {
    this.#trickle = new Trickle(this.epoch, 0, this.#config.candidatesTimeout);
    this.#restart = this.#newRestart();
    this.#wanted = null;
    this.#extended = false;
    this.#pingedAt = null;
    this.pair = null;
    this.generation = 0;
    this.#deadlines.clear("again");
    this.#deadlines.clear("upgrade");
  }

  /** @param {number} now */
  #dial(now) {
    // Past whatever the other side has seen, so that it does not take the offer for an old one.
    const seen = /** @type {LinkSignal | null} */ (this.#arg)?.epoch ?? 0;
    this.#begin(Math.max(this.epoch, seen) + 1, { kind: "MakeOffer", generation: 0 }, now);
  }

  /** @param {number} now */
  #answer(now) {
    const { epoch, message } = this.#signal;
    const { sdp } = /** @type {Offer} */ (message);
    const held = this.#held;
    this.#held = null;
    this.#begin(epoch, { kind: "AcceptOffer", sdp, generation: 0 }, now);
    this.#trickle.described(sdp, now);
    if (held?.epoch === epoch) this.#out.push(...this.#trickle.received(held.candidates, { end: held.end, now }));
  }

  #drop() {
    if (!HAS_CONNECTION.has(this.state)) return;
    this.#operate({ kind: "CloseConnection" });
    this.#forget();
  }

  /** @param {"Offer" | "Answer"} kind */
  #sendDescription(kind) {
    const sdp = /** @type {string} */ (this.#arg);
    this.#send(this.epoch, { kind, sdp, generation: 0 });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  /** @param {number} now */
  #acceptAnswer(now) {
    const { sdp } = /** @type {Answer} */ (this.#signal.message);
    this.#trickle.described(sdp, now);
    this.#operate({ kind: "AcceptAnswer", sdp, generation: 0 });
  }

  /** @param {number} now */
  #addCandidates(now) {
    const { candidates, end } = /** @type {Candidates} */ (this.#signal.message);
    this.#out.push(...this.#trickle.received(candidates, { end, now }));
  }

  /** @param {number} now */
  #trickleFound(now) {
    const { generation, candidates, end } =
      /** @type {{generation: number, candidates: IceCandidate[], end: boolean}} */ (this.#arg);
    const found = generation
      ? this.#toRestart((it) => it.localCandidates(generation, candidates, { end }), now)
      : this.#trickle.found(candidates, { end });
    this.#out.push(...found);
  }

  /** @param {number} now */
  #select(now) {
    const { generation, pair } = /** @type {{generation: number, pair: CandidatePair}} */ (this.#arg);
    this.#out.push(...this.#toRestart((it) => it.selected(generation, now), now));
    if (generation === this.generation && isSamePair(pair, this.pair)) return;
    let reason = this.#detail;
    if (generation && generation !== this.generation) {
      this.history.restarts += 1;
      reason = `ICE restart took over: ${this.#restart.reason}`;
    }
    this.generation = generation;
    this.pair = pair;
    this.#out.push({ kind: "PairSelected", reason });
    this.#armUpgrade(now);
  }

  /** @param {number} now */
  #handOn(now) {
    const arg = /** @type {LinkSignal | RestartCall} */ (this.#arg);
    /** @type {RestartCall} */
    const call =
      typeof arg === "function"
        ? arg
        : (it) => it.message(/** @type {Offer | Answer | Candidates} */ (arg.message), now);
    this.#out.push(...this.#toRestart(call, now));
  }

  #disown() {
    this.#send(this.#signal.epoch, { kind: "Dial", reason: this.#detail });
  }

  /** @param {number} now */
  #restartNow(now) {
    if (this.#wanted !== null) this.#out.push(...this.#beginRestart(this.#wanted, now, { urgent: true }));
  }

  /** @param {number} now */
  #extend(now) {
    this.#extended = true;
    this.#deadlines.set("state", now + this.#config.connectTimeout);
  }

  #holdCandidates() {
    const { epoch, message } = this.#signal;
    const more = /** @type {Candidates} */ (message);
    if (this.#held === null || this.#held.epoch < epoch) this.#held = { epoch, candidates: [], end: false };
    if (this.#held.epoch !== epoch) return;
    this.#held.candidates.push(...more.candidates);
    this.#held.end ||= more.end;
  }

  #countFailure() {
    this.#failures += 1;
    this.history.failure = this.#detail;
  }

  /** @param {number} now */
  #waitMore(now) {
    // While the relay carries data there is no hurry.
    const backoff = this.carried ? this.#upgrade : this.#backoff;
    this.#deadlines.set("state", now + backoff.next(this.#random()));
  }

  /** @param {Operation} operation */
  #operate(operation) {
    this.#out.push({ kind: "Operate", epoch: this.epoch, operation });
  }

  /**
   * @param {number} epoch
   * @param {LinkMessage} body
   */
  #send(epoch, body) {
    this.#out.push({ kind: "SendSignal", epoch, body });
  }

  /** The message that was fed, where the row is for one. */
  get #signal() {
    return /** @type {LinkSignal} */ (this.#arg);
  }
}

/**
 * @param {string} text
 * @param {string} code
 * @param {string} field
 * @returns {Refuse[]}
 */
function refuse(text, code, field) {
  return [{ kind: "Refuse", error: new ProtocolError(text, { code, field }) }];
}

/**
 * Whether both are of the same two ends.
 * @param {CandidatePair} one
 * @param {CandidatePair | null} other
 */
function isSamePair(one, other) {
  return other !== null && isSameEnd(one.local, other.local) && isSameEnd(one.remote, other.remote);
}

/**
 * @param {CandidateInfo} one
 * @param {CandidateInfo} other
 */
function isSameEnd(one, other) {
  return (
    one.type === other.type &&
    one.address === other.address &&
    one.port === other.port &&
    one.server === other.server
  );
}

/**
 * A number in as few characters as `digits` significant ones allow: `2.5`, `8`, `1e+06`. As Python's
 * "g" writes it, so that a reason reads the same wherever it is from.
 * @param {number} value
 * @param {number} [digits]
 */
function general(value, digits = 6) {
  const [whole, exponent] = value.toExponential(digits - 1).split("e");
  let mantissa = whole;
  // Halfway between two numbers this takes the larger, Python the even one.
  const rest = value.toExponential(60).split("e")[0].replace(/[-.]/g, "").slice(digits);
  if (/^50*$/.test(rest) && "13579".includes(mantissa.slice(-1))) {
    mantissa = mantissa.slice(0, -1) + (Number(mantissa.slice(-1)) - 1);
  }
  const power = Number(exponent);
  if (power >= -4 && power < digits) return String(Number(`${mantissa}e${power}`));
  const sign = power < 0 ? "-" : "+";
  return `${Number(mantissa)}e${sign}${String(Math.abs(power)).padStart(2, "0")}`;
}
