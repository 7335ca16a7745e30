//! The gRPC contract of the guest agent. The documentation is in `proto/guest.proto`.

/// The virtio-serial port the agent serves; the guest sees it as `/dev/virtio-ports/<name>`.
pub const PORT_NAME: &str = "roost.agent.0";

/// How the message of a tunnel begins whose target port refuses.
pub const NOTHING_ANSWERS: &str = "nothing answers on port";

/// How the message begins that refuses a path which leads out of the roots.
pub const FILE_OUTSIDE: &str = "the path leads out of the directories that may be reached";

/// How the message ends that says that a path which should lead to a file does not.
pub const FILE_IS_DIRECTORY: &str = "is a directory";

pub mod v1 {
    #![expect(clippy::allow_attributes, reason = "generated code")]
    tonic::include_proto!("roost.guest.v1");
}
