// What the figures of the relay mean to this page.

/** States in which a link is down, and how bad each is. */
const DOWN = { failed: 5, closed: 5, disconnected: 4 };

/** As the relay counts it: an end that is present says so, and a path is named. */
export const connected = (link) => link.heard && link.state === "connected" && link.path !== null;

/** How much a link asks for attention; the higher, the sooner it is shown. */
export function worry(link) {
  if (connected(link)) return { relay: 3, turn: 1 }[link.path] ?? 0;
  return DOWN[link.state] ?? 2;
}

export const troubled = (link) => worry(link) >= 3;

/** Which colour: that of the path, or without one that of its state. */
export function tone(link) {
  if (connected(link)) return link.path;
  return link.state in DOWN ? "bad" : "idle";
}

/** Which kind of line: connected, waiting, disconnected or failed. */
export function dash(link) {
  if (connected(link)) return "connected";
  if (link.state === "disconnected") return "disconnected";
  return link.state in DOWN ? "failed" : "waiting";
}

const pairKey = (a, b) => JSON.stringify([a, b]);
export const otherEnd = (link, id) => (link.a === id ? link.b : link.a);
export const touches = (link, id) => link.a === id || link.b === id;

/** What members are called here, by their ids: out of [id, display name or null]. Display names are
    not unique, and anybody may take one that is somebody's id: then the id stands beside it. */
export function callNames(pairs) {
  const times = new Map();
  for (const [id, name] of pairs) for (const each of new Set([id, name ?? id])) times.set(each, (times.get(each) ?? 0) + 1);
  return new Map(pairs.map(([id, name]) => [id, name === null || name === id ? id : times.get(name) > 1 ? `${name} (${id})` : name]));
}

/** The round trip; of one that is not connected it is how it was, not how it is. */
export const rttOf = (link) => (connected(link) ? link.rtt : null);

/** The median round trip of those that are connected and measured one. */
export function roundTrip(links) {
  const sorted = links.map(rttOf).filter((rtt) => rtt !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** How many links there are of each tone. */
export function tally(links) {
  const counts = { direct: 0, turn: 0, relay: 0, idle: 0, bad: 0 };
  for (const link of links) counts[tone(link)]++;
  return counts;
}

/** A tally in words, without what there is none of: "3 direct, 1 relay". */
export function tallyText(counts) {
  const words = { direct: "direct", turn: "TURN", relay: "relay", idle: "connecting", bad: "down" };
  return Object.entries(words).filter(([name]) => counts[name]).map(([name, word]) => `${counts[name]} ${word}`).join(", ");
}

/** The relay tells of so many links of a room; of more, those that are well are left out. */
const MOST_LINKS = 1500;

/** A room, with what is asked of it again and again. */
export class Room {
  constructor(topology) {
    this.id = topology.roomId;
    this.members = topology.members.toSorted((a, b) => (a.peerId < b.peerId ? -1 : 1));
    this.links = topology.links;
    this.byPeer = new Map(this.members.map((member) => [member.peerId, member]));
    this.names = callNames(this.members.map((member) => [member.peerId, member.displayName]));
    for (const link of this.links) {
      link.key = pairKey(link.a, link.b);
      const here = [link.a, link.b].map((id) => this.byPeer.get(id)?.presence === "present");
      // Of a link whose ends are away it is known how it stood, not how it stands.
      link.heard = [link.aSide, link.bSide].some((side, i) => side && here[i]);
      // As the relay counts pairs: who is away can't talk, but for a direct path that outlives that.
      link.counts = (here[0] && here[1]) || connected(link);
    }
    this.byPair = new Map(this.links.map((link) => [link.key, link]));
    this.linksOf = new Map(this.members.map((member) => [member.peerId, []]));
    for (const link of this.links) {
      this.linksOf.get(link.a)?.push(link);
      this.linksOf.get(link.b)?.push(link);
    }
    this.cut = this.links.length >= MOST_LINKS;
    const present = this.members.filter((member) => member.presence === "present").length;
    this.counted = this.links.filter((link) => link.counts);
    const outlived = this.counted.filter((link) => [link.a, link.b].some((id) => this.byPeer.get(id)?.presence === "away")).length;
    this.pairs = (present * (present - 1)) / 2 + outlived;
  }

  link(a, b) {
    return this.byPair.get(pairKey(a, b)) ?? this.byPair.get(pairKey(b, a));
  }

  name(id) {
    return this.names.get(id) ?? id;
  }

  /** How a peer fares: down, relay, well, idle or away. Some of its links being down is the others'
      trouble as well, so only half of them or more count. */
  standing(member) {
    if (member.presence === "away") return "away";
    const links = this.linksOf.get(member.peerId).filter((link) => link.counts);
    if (!links.length) return "idle";
    const counts = tally(links);
    if (counts.bad * 2 >= links.length) return "bad";
    if (counts.relay * 2 >= links.length) return "relay";
    return counts.idle * 2 > links.length ? "idle" : "well";
  }
}

/** The same in words, with how many links are in trouble: [words, colour]. */
export function standingWords(room, member) {
  const all = room.linksOf.get(member.peerId);
  const links = all.filter((link) => link.counts);
  const trouble = links.filter(troubled).length;
  const of = (number) => (number === links.length ? (number > 1 ? `all ${number} links` : "its link") : `${number} of ${links.length} links`);
  switch (room.standing(member)) {
    case "away":
      return ["away, its seat is kept", "idle"];
    case "bad":
      return [`${of(tally(links).bad)} down`, "bad"];
    case "relay":
      return [`${of(tally(links).relay)} over the relay`, "relay"];
    case "idle":
      return [links.length ? "connecting" : all.length ? "the others are away" : "no links reported", "idle"];
  }
  return trouble ? [`${of(trouble)} in trouble`, "relay"] : ["well connected", "direct"];
}

/** What asks for attention: `{ member }` where it is one peer's trouble, and `{ link }` for the rest. */
export function attention(room) {
  const members = [];
  const covered = new Set();
  for (const member of room.members) {
    const standing = room.standing(member);
    const several = room.linksOf.get(member.peerId).filter((link) => link.counts && troubled(link)).length >= 3;
    if (standing !== "away" && !(several && (standing === "bad" || standing === "relay"))) continue;
    members.push({ member, key: `peer ${member.peerId}`, worry: { bad: 5, away: 4, relay: 3 }[standing] });
    covered.add(member.peerId);
  }
  const links = room.links
    .filter((link) => troubled(link) && !covered.has(link.a) && !covered.has(link.b))
    .map((link) => ({ link, key: link.key, worry: worry(link) }));
  return [...members.sort((a, b) => b.worry - a.worry), ...links.sort((a, b) => b.worry - a.worry || (a.key < b.key ? -1 : 1))];
}

/** What the state of a link means, and what helps. Empty when it is as it should be. */
export function linkAdvice(room, link) {
  const away = [link.a, link.b].filter((id) => room.byPeer.get(id)?.presence === "away");
  if (away.length === 2) return "Both ends have lost the relay, so nobody says how it stands. This is how it stood.";
  if (away.length && !connected(link)) return `${room.name(away[0])} has lost the relay as well: it may have crashed, or be without a network. Its seat is kept for a while.`;
  if (connected(link)) {
    return {
      turn: "No direct path worked. They go on looking for one.",
      relay: "Neither a direct path nor TURN worked, so their data goes through this relay. They go on looking. If it stays so, see that the relay names a TURN server, and that it answers.",
    }[link.path] ?? "";
  }
  if (link.state === "disconnected") return "Nothing was heard any more. They restart ICE by themselves, and connect anew if that does not help.";
  if (link.state === "failed") return "They found no path, and try again by themselves, with growing pauses. If it stays so, their networks let nothing through: a TURN server helps.";
  if (link.state === "closed") return "It was closed.";
  return "They are looking for a path to each other.";
}

/** The same of a peer. */
export function peerAdvice(room, member) {
  const links = room.linksOf.get(member.peerId).filter((link) => link.counts);
  switch (room.standing(member)) {
    case "away":
      return "Its connection to the relay is gone. Its seat is kept for a while; if it does not come back by then, the others see it leave.";
    case "bad":
      return links.length > 2 ? "Most of its links are down, so the trouble is likely to be its own: its network, or its program." : "";
    case "relay":
      return links.length > 2 ? "Most of its data goes through this relay, so its network is likely to let nothing else through. TURN over TCP or TLS may help." : "";
    case "idle":
      if (links.length) return "";
      if (room.members.length < 2) return "Nobody else is here.";
      return room.linksOf.get(member.peerId).length ? "" : "Nobody has told how its links stand.";
  }
  return "";
}
