//! Byte streams into the guest.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use bytes::Bytes;
use roost_guest_proto::v1::{
    Display, TunnelInput, TunnelOutput, TunnelTarget, UserSocket, tunnel_client::TunnelClient,
    tunnel_input::Input, tunnel_output::Output, tunnel_target::Target,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use support::Agent;

async fn open(
    channel: &Channel,
    target: Target,
) -> Result<(mpsc::Sender<TunnelInput>, Streaming<TunnelOutput>), Status> {
    let (sender, inputs) = mpsc::channel(4);
    let target = TunnelTarget { target: Some(target) };
    sender.send(TunnelInput { input: Some(Input::Target(target)) }).await.unwrap();
    let mut outputs =
        TunnelClient::new(channel.clone()).open(ReceiverStream::new(inputs)).await?.into_inner();
    let first = outputs.message().await?.unwrap().output.unwrap();
    assert!(matches!(first, Output::Opened(_)), "{first:?}");
    Ok((sender, outputs))
}

fn data(data: impl Into<Bytes>) -> TunnelInput {
    TunnelInput { input: Some(Input::Data(data.into())) }
}

async fn read_all(mut outputs: Streaming<TunnelOutput>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(output) = outputs.message().await.unwrap() {
        match output.output.unwrap() {
            Output::Data(data) => all.extend(data),
            Output::Opened(_) => panic!("opened twice"),
        }
    }
    all
}

async fn listen() -> (TcpListener, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Target::TcpPort(port.into()))
}

#[tokio::test]
async fn the_hosts_half_close_lets_the_target_answer() {
    let agent = Agent::start(&[]);
    let (listener, target) = listen().await;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        socket.read_to_end(&mut request).await.unwrap();
        socket.write_all(&request).await.unwrap();
    });
    let (inputs, outputs) = open(&agent.connect().await, target).await.unwrap();
    let sent: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let expected = sent.clone();
    tokio::spawn(async move {
        for piece in sent.chunks(60_000) {
            inputs.send(data(piece.to_vec())).await.unwrap();
        }
    });
    assert!(read_all(outputs).await == expected);
    server.await.unwrap();
}

#[tokio::test]
async fn the_targets_half_close_lets_the_host_go_on() {
    let agent = Agent::start(&[]);
    let (listener, target) = listen().await;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"hello").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let (inputs, outputs) = open(&agent.connect().await, target).await.unwrap();
    assert_eq!(read_all(outputs).await, b"hello");
    for _ in 0..3 {
        inputs.send(data("more ")).await.unwrap();
    }
    drop(inputs);
    assert_eq!(server.await.unwrap(), b"more more more ");
}

#[tokio::test]
async fn a_dropped_call_closes_the_target() {
    let agent = Agent::start(&[]);
    let (listener, target) = listen().await;
    let call = open(&agent.connect().await, target).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    drop(call);
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn an_unread_tunnel_holds_its_target_back() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (listener, target) = listen().await;
    let (_inputs, _outputs) = open(&channel, target).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let flood = async {
        let mut sent = 0;
        loop {
            sent += socket.write(&[0; 65_536]).await.unwrap();
            assert!(sent < 64 << 20, "everything is swallowed");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(2), flood).await.unwrap_err();
    // The others are not held back.
    let (echo, target) = listen().await;
    let (inputs, outputs) = open(&channel, target).await.unwrap();
    let (mut socket, _) = echo.accept().await.unwrap();
    socket.write_all(b"quick").await.unwrap();
    drop((socket, inputs));
    assert_eq!(read_all(outputs).await, b"quick");
}

#[tokio::test]
async fn the_display_is_the_rfb_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rfb.sock");
    let agent = Agent::start(&["--rfb", path.to_str().unwrap()]);
    let channel = agent.connect().await;
    let refused = open(&channel, Target::Display(Display {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let listener = UnixListener::bind(&path).unwrap();
    let (_inputs, outputs) = open(&channel, Target::Display(Display {})).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"RFB 003.008\n").await.unwrap();
    drop(socket);
    assert_eq!(read_all(outputs).await, b"RFB 003.008\n");
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (listener, target) = listen().await;
    drop(listener);
    assert_eq!(open(&channel, target).await.unwrap_err().code(), Code::Unavailable);
    for port in [0, 65_536, u32::MAX] {
        assert_eq!(open(&channel, Target::TcpPort(port)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut client = TunnelClient::new(channel);
    let first = client.open(tokio_stream::iter([data("x")])).await.unwrap_err();
    assert_eq!(first.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_users_socket_is_connected_to_as_that_user() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let socket =
        |path: &std::path::Path| Target::UserSocket(UserSocket { path: path.to_str().unwrap().to_owned() });
    let refused = open(&channel, socket(&path)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(path.to_str().unwrap()), "{refused}");

    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let seen = socket.peer_cred().unwrap().uid();
        socket.write_all(&seen.to_le_bytes()).await.unwrap();
    });
    let (_inputs, outputs) = open(&channel, socket(&path)).await.unwrap();
    let seen = u32::from_le_bytes(read_all(outputs).await.try_into().unwrap());
    assert_eq!(seen, rustix::process::geteuid().as_raw());
    server.await.unwrap();
    // A relative one is in the user's runtime directory.
    let missing = open(&channel, socket("roost-no-such-socket".as_ref())).await.unwrap_err();
    assert!(missing.message().contains(&format!("/run/user/{seen}/roost-no-such-socket")), "{missing}");
}
