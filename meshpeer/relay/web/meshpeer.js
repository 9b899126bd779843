// meshpeer in a browser: the peer of a room, of the same kind as Python's PeerManager.
//
//     import { PeerManager } from "https://relay.example.org/meshpeer.js";

export * from "./client/codec.js";
export { MeshConfig } from "./client/config.js";
export * from "./client/files.js";
export { Debug, PeerManager } from "./client/manager.js";
export { Channel, Message, Peer } from "./client/peer.js";
