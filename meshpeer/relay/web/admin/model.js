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
export const displayName = (member) => member.displayName ?? member.peerId;

/** The median round trip of those that are connected and measured one. */
export function roundTrip(links) {
  const sorted = links.filter((link) => connected(link) && link.rtt !== null).map((link) => link.rtt).sort((a, b) => a - b);
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
const MOST_LINKS = 5000;

/** A room, with what is asked of it again and again. */
export class Room {
  constructor(topology) {
    this.id = topology.roomId;
    this.members = topology.members.toSorted((a, b) => (a.peerId < b.peerId ? -1 : 1));
    this.links = topology.links;
    this.byPeer = new Map(this.members.map((member) => [member.peerId, member]));
    for (const link of this.links) {
      link.key = pairKey(link.a, link.b);
      // Of a link whose ends are away it is known how it stood, not how it stands.
      link.heard = [[link.a, link.aSide], [link.b, link.bSide]].some(([id, side]) => side && this.byPeer.get(id)?.presence === "present");
    }
    this.byPair = new Map(this.links.map((link) => [link.key, link]));
    this.linksOf = new Map(this.members.map((member) => [member.peerId, []]));
    for (const link of this.links) {
      this.linksOf.get(link.a)?.push(link);
      this.linksOf.get(link.b)?.push(link);
    }
    this.cut = this.links.length >= MOST_LINKS;
    this.pairs = (this.members.length * (this.members.length - 1)) / 2;
  }

  link(a, b) {
    return this.byPair.get(pairKey(a, b)) ?? this.byPair.get(pairKey(b, a));
  }

  name(id) {
    const member = this.byPeer.get(id);
    return member ? displayName(member) : id;
  }

  /** How a peer fares: down, relay, well, idle or away. Some of its links being down is the others'
      trouble as well, so only half of them or more count. */
  standing(member) {
    if (member.presence === "away") return "away";
    const links = this.linksOf.get(member.peerId);
    if (!links.length) return "idle";
    const counts = tally(links);
    if (counts.bad * 2 >= links.length) return "bad";
    if (counts.relay * 2 >= links.length) return "relay";
    return counts.idle * 2 > links.length ? "idle" : "well";
  }
}

/** The same in words, with how many links are in trouble: [words, colour]. */
export function standingWords(standing, links) {
  const trouble = links.filter(troubled).length;
  if (standing === "well" && trouble) return [`${trouble} of ${links.length} links in trouble`, "relay"];
  return {
    bad: ["most links down", "bad"],
    relay: ["mostly over the relay", "relay"],
    well: ["well connected", "direct"],
    idle: [links.length ? "connecting" : "no links reported", "idle"],
    away: ["away, its seat is kept", "idle"],
  }[standing];
}
