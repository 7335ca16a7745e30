//! How the server bears many computers: simulated machines, a real database, requests through the whole router.
//!
//! `cargo run --release -p roost-http --example load -- [COMPUTERS]`, on SQLite, or on PostgreSQL where
//! `ROOST_TEST_DATABASE` has the address of a server. The figures are without network and without machines: what is left
//! is routes, control plane and SQL. Everything runs in this process, subscribers included.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "the figures are the point")]

#[path = "../tests/it/support.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;

use support::Server;

const WORKERS: usize = 16;
const SUBSCRIBERS: usize = 500;
const CHANGES: usize = 50;
const MEASURED: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() {
    let computers = std::env::args().nth(1).map_or(10_000, |count| count.parse().unwrap());
    let server = Arc::new(Server::new().await);
    let engine = if server.store.is_shared() { "PostgreSQL" } else { "SQLite" };
    println!("{computers} computers, {engine}, {WORKERS} callers at a time");
    println!("memory {} MiB before", memory_mib());
    memory_of_subscribers(&server).await;

    let begun = Instant::now();
    let ids = Arc::new(create(&server, computers).await);
    let seconds = begun.elapsed().as_secs_f64();
    println!("create                   {:>8.0} /s", computers as f64 / seconds);
    println!("memory {} MiB with all of them", memory_mib());

    measure("get", &server, |n| format!("/computers/{}", ids[scatter(n) % ids.len()])).await;
    let pages = computers.div_ceil(20);
    measure("list, a page of 20", &server, |n| {
        format!("/computers?page_size=20&page={}", scatter(n) % pages + 1)
    })
    .await;
    measure("list, running", &server, |n| {
        format!("/computers?page_size=20&status=running&page={}", scatter(n) % pages + 1)
    })
    .await;
    measure("list, search", &server, |n| format!("/computers?page_size=20&search=box-{}", scatter(n) % 1000))
        .await;
    events(&server, &ids).await;
    println!("memory {} MiB after", memory_mib());
}

async fn create(server: &Arc<Server>, count: usize) -> Vec<String> {
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let server = server.clone();
        workers.spawn(async move {
            let mut made = Vec::new();
            for number in (worker..count).step_by(WORKERS) {
                // A name of its own for each: how free slugs are found is not what is measured.
                let body = json!({ "name": format!("box {number}"), "template_type": "miosa-desktop" });
                let (status, computer) = server.post("/computers?wait=true", body).await;
                assert_eq!(status, 201, "{computer}");
                made.push(computer["id"].as_str().unwrap().to_owned());
            }
            made
        });
    }
    workers.join_all().await.concat()
}

/// Asks for paths with several callers for a while.
async fn measure(name: &str, server: &Arc<Server>, path: impl Fn(usize) -> String) {
    let until = Instant::now() + MEASURED;
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let server = server.clone();
        let paths: Vec<String> = (0..512).map(|n| path(worker * 512 + n)).collect();
        workers.spawn(async move {
            let mut times = Vec::new();
            for path in paths.iter().cycle() {
                if Instant::now() >= until {
                    break;
                }
                let begun = Instant::now();
                let (status, text) = ask(&server, path).await;
                times.push(begun.elapsed());
                assert_eq!(status, 200, "{text}");
            }
            times
        });
    }
    let mut times = workers.join_all().await.concat();
    times.sort();
    println!(
        "{name:<24} {:>8.0} /s   p50 {:>7.2} ms   p99 {:>7.2} ms",
        times.len() as f64 / MEASURED.as_secs_f64(),
        percentile(&times, 50),
        percentile(&times, 99),
    );
}

async fn ask(server: &Server, path: &str) -> (u16, String) {
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/api/v1{path}"))
        .header("authorization", format!("Bearer {}", server.key))
        .body(Body::empty())
        .unwrap();
    let response = server.router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// While the heap has nothing free that they could take.
async fn memory_of_subscribers(server: &Server) {
    let before = memory_kib();
    let mut streams = Vec::new();
    for _ in 0..SUBSCRIBERS {
        streams.push(server.listen("/events/stream", None).await);
    }
    let each = (memory_kib() - before) / SUBSCRIBERS as u64;
    println!("memory {each} KiB for each of {SUBSCRIBERS} subscribers");
}

/// From a change to its event at each one, and at the last one, of many subscribers.
async fn events(server: &Arc<Server>, ids: &[String]) {
    let (sender, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..SUBSCRIBERS {
        let mut stream = server.listen("/events/stream?types=computer.stopped", None).await;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.next().await.is_some() {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }
    println!("memory {} MiB with {SUBSCRIBERS} subscribers", memory_mib());
    let (mut times, mut last) = (Vec::new(), Vec::new());
    for id in ids.iter().take(CHANGES) {
        let begun = Instant::now();
        let (status, answer): (u16, Value) = server.post(&format!("/computers/{id}/stop"), json!({})).await;
        assert_eq!(status, 200, "{answer}");
        for _ in 0..SUBSCRIBERS {
            times.push(arrived.recv().await.unwrap() - begun);
        }
        last.push(times[times.len() - SUBSCRIBERS..].iter().copied().max().unwrap());
    }
    for (name, mut times) in [("stop to event, each", times), ("stop to event, all", last)] {
        times.sort();
        println!(
            "{name:<24} {SUBSCRIBERS:>8} streams   p50 {:>7.2} ms   p99 {:>7.2} ms",
            percentile(&times, 50),
            percentile(&times, 99),
        );
    }
}

/// Spreads neighbours.
fn scatter(n: usize) -> usize {
    n.wrapping_mul(2_654_435_761) >> 7
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// What this process has in memory.
fn memory_mib() -> u64 {
    memory_kib() / 1024
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
