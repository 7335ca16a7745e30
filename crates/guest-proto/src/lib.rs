//! The gRPC contract of the guest agent. The documentation is in `proto/guest.proto`.

/// The virtio-serial port the agent serves; the guest sees it as `/dev/virtio-ports/<name>`.
pub const PORT_NAME: &str = "roost.agent.0";

/// How the message of a tunnel begins whose target port refuses.
pub const NOTHING_ANSWERS: &str = "nothing answers on port";

pub mod v1 {
    #![expect(clippy::allow_attributes, reason = "generated code")]
    tonic::include_proto!("roost.guest.v1");
}
