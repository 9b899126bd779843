// meshpeer in a browser: a peer of a room like any other, the twin of Python's PeerManager.
//
//     import { PeerManager } from "https://relay.example.org/meshpeer.js";
//
//     const mesh = new PeerManager("wss://relay.example.org", { room: "lobby", name: "Ann" });
//     await mesh.start();
//     mesh.addEventListener("message", ({ detail: { sender, data } }) => console.log(sender.name, data));
//     await mesh.broadcast("hello");

export {
  ChannelClosed,
  ClosedError,
  ConfigError,
  ConnectionFailed,
  Forbidden,
  IdentityReplaced,
  InvalidData,
  MeshClosed,
  MeshError,
  MeshTimeout,
  MessageTooLarge,
  NetworkError,
  PeerClosed,
  PeerIdTaken,
  ProtocolError,
  RateLimited,
  RefusedError,
  RemoteError,
  Removed,
  RequestFailed,
  RoomFull,
  SignalingBacklog,
  SignalingUnavailable,
  SlowReader,
  TooManyChannels,
  TooManyRooms,
  TransferFailed,
  Unauthorized,
  Undelivered,
  UnexpectedInput,
  UsageError,
} from "./codec.js";
export { MeshConfig } from "./config.js";
export { BlobSink } from "./files.js";
export { Debug, PeerManager } from "./manager.js";
export { Channel, Message, Peer } from "./peer.js";
