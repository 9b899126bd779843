// The panel beside the mesh: a room, a peer or a link, whichever is chosen.

import { byId, el, keyed, named, setClass, setHidden, setText } from "./dom.js";
import { NONE, bytes, count, counted, date, known, long, pathName, short, stateName } from "./format.js";
import { attention, linkAdvice, peerAdvice, roundTrip, rttOf, standingWords, tally, tallyText, touches, worry } from "./model.js";
import { activityItem, chip, fillActivityItem, pairs, rowList, setChip, setLinkChip, setNames } from "./parts.js";

const RECENT = 8; // entries of the activity
const WORST = 30; // links that ask for attention

const SIDE = [
  ["State", (side) => stateName(side.state), true],
  ["For", (side, now) => long(now - side.since)],
  ["Reason", (side) => side.reason || NONE],
  ["Last failure", (side) => side.failure || NONE],
  ["ICE", (side) => stateName(side.iceState), true],
  ["Path", (side) => (side.path === null ? NONE : pathName(side.path)), true],
  ["Round trip", (side) => short(side.rtt)],
  ["Attempts", (side) => count(side.attempts)],
  ["Succeeded", (side) => count(side.successes)],
  ["Failed", (side) => count(side.failures)],
  ["Connection time", (side) => (known(side.connectTime) && side.successes ? short(side.connectTime / side.successes) : NONE)],
  ["ICE restarts", (side) => count(side.restarts)],
  ["Fallbacks", (side) => count(side.fallbacks)],
  ["Messages sent", (side) => count(side.messages)],
  ["Bytes sent", (side) => bytes(side.bytesSent)],
  ["Bytes received", (side) => bytes(side.bytesReceived)],
  ["Told", (side, now) => `${long(now - side.updated)} ago`],
];

/** How many links there are of a kind, with its colour; none of them are no news. */
const path = (term, number, colour) => [term, count(number), `${colour} mark${number ? "" : " zero"}`];

const byWorry = (a, b) => worry(b) - worry(a) || (a.key < b.key ? -1 : 1);

export class Detail {
  #body = byId("detail-body");
  #title = byId("detail-title");
  #actions;
  #select;
  #shown = ""; // what the skeleton is for
  #parts = {};
  #room = null;
  #what = {};

  /** `select(selection)` changes what is chosen. */
  constructor(actions, select) {
    this.#actions = actions;
    this.#select = select;
    byId("detail-back").addEventListener("click", () => select({}));
  }

  update({ room, selection, activity, now, info }) {
    this.#room = room;
    const { peer, link } = selection;
    const back = byId("detail-back");
    if (!peer && !link && document.activeElement === back) byId("detail").focus({ preventScroll: true });
    setHidden(back, !peer && !link);
    if (!room) {
      this.#skeleton("none", () => {
        setNames(this.#title, ["Detail"]);
        this.#body.append(el("p", { className: "empty" }, "What you choose is shown here."));
      });
    } else if (link) this.#link(room, link, activity, now);
    else if (peer) this.#peer(room, peer, activity, now);
    else this.#whole(room, activity, now, info);
  }

  /** Makes what does not change while the same is shown; so nothing loses the focus. */
  #skeleton(key, make) {
    if (this.#shown === key) return;
    this.#shown = key;
    this.#parts = {};
    // What has the focus goes: somebody who can't see where it went begins at what is shown now.
    if (this.#body.contains(document.activeElement)) byId("detail").focus({ preventScroll: true });
    this.#body.replaceChildren();
    this.#body.scrollTop = 0;
    make();
  }

  #add(name, element, title = null) {
    if (title) this.#body.append((this.#parts[`${name}Title`] = el("h3", {}, title)));
    this.#body.append((this.#parts[name] = element));
  }

  #button(words, act, className = "") {
    const button = el("button", { type: "button", className }, words);
    button.addEventListener("click", act);
    return button;
  }

  #advise(text) {
    setText(this.#parts.advice, text);
    setHidden(this.#parts.advice, !text);
  }

  #recent(activity, about) {
    const found = [];
    const { entries } = activity;
    for (let i = entries.length - 1; i >= 0 && found.length < RECENT; i--) if (about(entries[i])) found.push(entries[i]);
    keyed(
      this.#parts.recent,
      found,
      (entry) => entry.number,
      (entry) => activityItem(entry, (chosen) => this.#select({ peer: chosen.peerId, link: chosen.otherPeerId ? [chosen.peerId, chosen.otherPeerId] : null }), true),
      (item, entry) => fillActivityItem(item, entry, (roomId, id) => activity.nameOf(this.#room, roomId, id)),
    );
    setHidden(this.#parts.recent, !found.length);
    setHidden(this.#parts.recentTitle, !found.length);
  }

  // --- a room ----------------------------------------------------------------------------------

  #whole(room, activity, now, info) {
    this.#skeleton(JSON.stringify(["room", room.id]), () => {
      setNames(this.#title, [room.id]);
      this.#add("facts", el("dl", { className: "pairs two" }));
      this.#add("links", el("ul", { className: "list" }), "Needs attention");
      this.#add("well", el("p", { className: "empty" }));
      this.#add("buttons", el("p", { className: "buttons" }, this.#button("Send a notice…", () => this.#actions.notice(this.#room))));
      this.#add("recent", el("ol", { className: "list entries" }), "Lately");
    });
    const away = room.members.filter((member) => member.presence === "away").length;
    const counts = tally(room.counted);
    const apart = room.links.length - room.counted.length;
    pairs(this.#parts.facts, [
      ["Members", count(room.members.length) + (away ? `, ${count(away)} away` : "")],
      ["Pairs", count(room.cut && info ? info.links : room.pairs)],
      // The relay tells of so many links, and counts all.
      path("Direct", room.cut ? info?.direct : counts.direct, "direct"),
      path("TURN", room.cut ? info?.turn : counts.turn, "turn"),
      path("Relay", room.cut ? info?.relay : counts.relay, "relay"),
      path("Connecting", counts.idle, "idle"),
      path("Down", counts.bad, "bad"),
      ...(room.cut ? [] : [path("Nothing reported", room.pairs - room.counted.length, "none")]),
      ...(apart ? [["Links of who is away", count(apart), "wide"]] : []),
      ["Round trip, median", short(roundTrip(room.links)), "wide"],
      ...(info ? [["Open for", long(now - info.since), "wide"]] : []),
    ]);
    const worst = attention(room);
    rowList(this.#parts.links, room, worst.slice(0, WORST), null, this.#select);
    setText(this.#parts.linksTitle, worst.length > WORST ? `Needs attention: ${WORST} of ${count(worst.length)}` : "Needs attention");
    setHidden(this.#parts.well, worst.length > 0);
    setText(this.#parts.well, room.links.length ? "Nothing: every link that was reported is well." : "No links were reported.");
    this.#recent(activity, (entry) => entry.roomId === room.id);
  }

  // --- a peer ----------------------------------------------------------------------------------

  #peer(room, id, activity, now) {
    const member = room.byPeer.get(id);
    if (!member) return this.#gone(room, id, activity);
    this.#what = { member };
    this.#skeleton(JSON.stringify(["peer", room.id, id]), () => {
      const current = () => [this.#room, this.#what.member];
      this.#add("id", el("p", { className: "id" }));
      this.#add("standing", el("p"));
      this.#parts.standing.append((this.#parts.chip = chip()));
      this.#add("advice", el("p", { className: "advice" }));
      this.#add("facts", el("dl", { className: "pairs" }));
      this.#add(
        "buttons",
        el("p", { className: "buttons" }, this.#button("Restart ICE…", () => this.#actions.restartPeer(...current())), this.#button("Remove…", () => this.#actions.remove(...current()), "danger")),
      );
      this.#add("links", el("ul", { className: "list" }), "Links");
      this.#add("recent", el("ol", { className: "list entries" }), "Lately");
    });
    setNames(this.#title, [room.name(id)]);
    setText(this.#parts.id, id);
    const links = room.linksOf.get(id).toSorted(byWorry);
    setChip(this.#parts.chip, ...standingWords(room, member));
    this.#advise(peerAdvice(room, member));
    pairs(this.#parts.facts, [
      ["Links", tallyText(tally(links)) || "none reported"],
      ["Round trip, median", short(roundTrip(links))],
      ["Here since", `${date(member.joined)} (${long(now - member.joined)})`],
      ["Last heard", `${long(now - member.lastSeen)} ago`],
      ["Address", member.address ?? NONE, "code"],
      ["Token's subject", member.subject ?? NONE, "code"],
      ["Incarnation", member.incarnation, "code"],
    ]);
    setText(this.#parts.linksTitle, counted(links.length, "link"));
    rowList(this.#parts.links, room, links.map((link) => ({ link, key: link.key })), id, this.#select);
    this.#recent(activity, (entry) => entry.roomId === room.id && (entry.peerId === id || entry.otherPeerId === id));
  }

  #gone(room, id, activity) {
    this.#skeleton(JSON.stringify(["gone", room.id, id]), () => {
      setNames(this.#title, [id]);
      this.#body.append(el("p", { className: "empty" }, named(id), " is not in this room."));
      this.#add("recent", el("ol", { className: "list entries" }), "Lately");
    });
    this.#recent(activity, (entry) => entry.roomId === room.id && (entry.peerId === id || entry.otherPeerId === id));
  }

  // --- a link ----------------------------------------------------------------------------------

  #link(room, [a, b], activity, now) {
    const link = room.link(a, b);
    this.#what = { link };
    const about = (entry) => entry.roomId === room.id && touches({ a, b }, entry.peerId) && touches({ a, b }, entry.otherPeerId);
    if (!link) {
      this.#skeleton(JSON.stringify(["no link", room.id, a, b]), () => {
        this.#body.append((this.#parts.why = el("p", { className: "empty" })));
        this.#add("recent", el("ol", { className: "list entries" }), "Lately");
      });
      setNames(this.#title, [room.name(a), room.name(b)]);
      const here = room.byPeer.has(a) && room.byPeer.has(b);
      setText(this.#parts.why, here ? "Neither of them has reported anything of this link." : "Not both of them are in this room.");
      this.#recent(activity, about);
      return;
    }
    this.#skeleton(JSON.stringify(["link", room.id, link.a, link.b]), () => {
      this.#add("state", el("p"));
      this.#parts.state.append((this.#parts.chip = chip()), (this.#parts.since = el("small")));
      this.#add("advice", el("p", { className: "advice" }));
      this.#add("facts", el("dl", { className: "pairs" }));
      this.#add("buttons", el("p", { className: "buttons" }, this.#button("Restart ICE…", () => this.#actions.restartLink(this.#room, this.#what.link))));
      this.#add("sides", this.#sides(link), "Both sides");
      this.#add("recent", el("ol", { className: "list entries" }), "Lately");
    });
    setNames(this.#title, [room.name(link.a), room.name(link.b)]);
    setLinkChip(this.#parts.chip, link);
    setText(this.#parts.since, known(link.since) ? ` for ${long(now - link.since)}` : "");
    this.#advise(linkAdvice(room, link));
    pairs(this.#parts.facts, [
      ["Round trip", short(rttOf(link))],
      ["Quality", link.quality ?? NONE],
    ]);
    this.#fillSides(room, link, now);
    this.#recent(activity, about);
  }

  #sides(link) {
    const head = [link.a, link.b].map((id) => {
      const button = this.#button("", () => this.#select({ peer: id }), "plain");
      return el("th", { scope: "col" }, button);
    });
    const rows = SIDE.map(([term]) => el("tr", {}, el("th", { scope: "row" }, term), el("td"), el("td")));
    return el("table", { className: "sides" }, el("thead", {}, el("tr", {}, el("td"), ...head)), el("tbody", {}, ...rows));
  }

  #fillSides(room, link, now) {
    const [head, body] = this.#parts.sides.children;
    [link.a, link.b].forEach((id, i) => setNames(head.rows[0].cells[i + 1].firstChild, [room.name(id)]));
    SIDE.forEach(([, text, compared], i) => {
      const row = body.rows[i];
      [link.aSide, link.bSide].forEach((side, j) => setText(row.cells[j + 1], side ? text(side, now) : i ? "" : "told nothing"));
      setClass(row, "differs", Boolean(compared && link.aSide && link.bSide && row.cells[1].textContent !== row.cells[2].textContent));
    });
  }
}
