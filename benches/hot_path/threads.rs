//! One key and many, from one thread and from one per core.

use std::{
    hint::black_box,
    sync::Barrier,
    thread::{self, available_parallelism},
    time::{Duration, Instant},
};

use axum::Router;
use http::HeaderValue;
use tokio::runtime::Runtime;

use crate::{
    run,
    service::{self, Service, ask},
    support::Cases,
};

const KEYS: usize = 10_000;

pub(crate) fn measure(runtime: &Runtime) {
    let service = Service::new(runtime, KEYS, service::roomy());
    let routers = [("bare", service::bare()), ("layer", service::bare().layer(service.layer()))];
    let all = available_parallelism().unwrap().get();
    // Each thread has its own copy, as each connection has its own buffer.
    let copies: Vec<Vec<_>> = (0..all).map(|_| service.keys.iter().map(copy).collect()).collect();
    let mut loads = vec![(1, 1), (all, 1), (1, KEYS), (all, KEYS)];
    loads.dedup();

    let mut cases = Cases::default();
    for (threads, keys) in &loads {
        for (name, router) in &routers {
            let mut requests: Vec<_> = (0..*threads)
                .map(|thread| copies[thread][..*keys].iter().cycle().skip(thread * keys / threads))
                .collect();
            cases.add_timed(case(*threads, *keys, name), move |turns| {
                at_once(router, &mut requests, turns)
            });
        }
    }
    run(&mut cases);

    for (threads, keys) in loads {
        let (bare, layer) = (case(threads, keys, "bare"), case(threads, keys, "layer"));
        let added = cases.min(&layer) - cases.min(&bare);
        println!(
            "{layer}: adds {added:.0} ns (paired {:.0}) = {:.2} x bare",
            cases.more_than(&bare, &layer),
            added / cases.min(&bare),
        );
    }
}

fn copy(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap()
}

fn case(threads: usize, keys: usize, name: &str) -> String {
    format!("{threads} thread(s), {keys} key(s): {name}")
}

/// The time of the slowest thread for `turns` requests.
fn at_once<'a>(
    router: &Router,
    requests: &mut [impl Iterator<Item = &'a HeaderValue> + Send],
    turns: u64,
) -> Duration {
    let barrier = Barrier::new(requests.len());
    let barrier = &barrier;
    thread::scope(|scope| {
        let threads: Vec<_> = requests
            .iter_mut()
            .map(|requests| {
                scope.spawn(move || {
                    barrier.wait();
                    let begin = Instant::now();
                    for key in requests.take(turns as usize) {
                        // In the CPU cache, as in a server that has just received it.
                        black_box(key.as_bytes().iter().fold(0, |sum, byte| sum ^ byte));
                        black_box(ask(router, key));
                    }
                    begin.elapsed()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}
