//! Draws how many requests four quotas of the same limit admit, for the manual:
//!
//! ```text
//! cargo run --example limits > docs/limits.svg
//! ```
//!
//! It uses the real limiter, and moves the clock itself.

use std::{fmt::Write as _, num::NonZeroU32, time::Duration};

use tower_api_key::rate_limit::{
    Decision, InvalidQuota, LocalRateLimiter, Quota, RateLimiter,
    port::{Check, Subject},
};

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const MINUTE: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(180);
pub(crate) const LIMIT: u32 = 600;

fn main() -> Result {
    print!("{}", svg()?);
    Ok(())
}

/// The source text of each quota, and the quota.
pub(crate) fn quotas() -> Result<[(&'static str, Quota); 4], InvalidQuota> {
    Ok([
        ("per_minute(600)", Quota::per_minute(LIMIT)?),
        ("per_minute(600)?.burst(20)", Quota::per_minute(LIMIT)?.burst(20)?),
        ("at_most(600, MINUTE)", Quota::at_most(LIMIT, MINUTE)?),
        ("sliding(600, MINUTE)", Quota::sliding(LIMIT, MINUTE)?),
    ])
}

/// A simulated client.
pub(crate) struct Client {
    title: &'static str,
    /// How many requests it sends every minute, all at the same time; `None` for a client that
    /// always sends more.
    burst: Option<u32>,
}

pub(crate) const CLIENTS: [Client; 2] = [
    Client { title: "Admitted from a client that always sends more", burst: None },
    Client { title: "Admitted from one that sends 600 every minute", burst: Some(LIMIT) },
];

/// When each request is admitted, of a client that retries exactly when it is told to.
pub(crate) fn admitted(quota: &Quota, client: &Client) -> Vec<Duration> {
    let limiter = LocalRateLimiter::new();
    let subject = Subject::of_key("a client", 1);
    let buckets = limiter.buckets(&subject, &quota.clone().into(), Duration::ZERO);
    let (mut now, mut admitted) = (Duration::ZERO, Vec::new());
    let mut bursts = 1_u32;
    while now < END {
        if client
            .burst
            .is_some_and(|burst| admitted.len() as u64 >= u64::from(bursts) * u64::from(burst))
        {
            now = now.max(MINUTE * bursts);
            bursts += 1;
            continue;
        }
        match buckets.take(NonZeroU32::MIN, now) {
            Check::Ready(decisions) if decisions.is_admitted() => admitted.push(now),
            Check::Ready(decisions) => {
                now += decisions.iter().map(Decision::next_unit_in).sum::<Duration>()
            }
            _ => unreachable!("it decides in this process"),
        }
    }
    admitted
}

const COLOURS: [(&str, &str); 4] =
    [("#0072b2", "none"), ("#c44e00", "9 4"), ("#007a59", "2 4"), ("#8a3f78", "12 3 3 3")];
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 240.0;
const MOST: f64 = 2_400.0;

pub(crate) fn svg() -> Result<String> {
    let mut svg = String::from(HEAD);
    let quotas = quotas()?;
    for (at, ((name, _), (colour, dashes))) in quotas.iter().zip(COLOURS).enumerate() {
        let (x, y) = (30 + at % 2 * 400, 28 + at / 2 * 22);
        writeln!(
            svg,
            "<path d=\"M{x} {y}h34\" stroke-width=\"2.2\" stroke=\"{colour}\" stroke-dasharray=\"{dashes}\"/>\n\
             <text x=\"{}\" y=\"{}\" font-family=\"monospace\">Quota::{name}</text>",
            x + 44,
            y + 4
        )?;
    }
    for (at, client) in CLIENTS.iter().enumerate() {
        writeln!(svg, "<g transform=\"translate({} 100)\">", 60 + at * 400)?;
        writeln!(svg, "<text y=\"-14\" font-weight=\"bold\">{}</text>", client.title)?;
        axes(&mut svg)?;
        for ((_, quota), (colour, dashes)) in quotas.iter().zip(COLOURS) {
            let line = simplified(&steps(&admitted(quota, client)));
            write!(
                svg,
                "<path fill=\"none\" stroke-width=\"2.2\" stroke=\"{colour}\" stroke-dasharray=\"{dashes}\" d=\""
            )?;
            for (at, (x, y)) in line.iter().enumerate() {
                write!(svg, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" })?;
            }
            writeln!(svg, "\"/>")?;
        }
        writeln!(svg, "</g>")?;
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// With a background of its own, because a page may be light or dark.
const HEAD: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 376" font-family="sans-serif" font-size="13" fill="#222" role="img" aria-label="Requests admitted over three minutes, by quota">
<rect x="1" y="1" width="818" height="374" rx="8" fill="#fff" stroke="#bbb"/>
"##;

fn axes(svg: &mut String) -> Result {
    for requests in (0..=4).map(|step| step * 600) {
        let y = HEIGHT - f64::from(requests) / MOST * HEIGHT;
        writeln!(
            svg,
            "<path stroke=\"#ddd\" d=\"M0 {y}h{WIDTH}\"/>\n\
             <text x=\"-8\" y=\"{}\" text-anchor=\"end\">{requests}</text>",
            y + 4.0
        )?;
    }
    for minute in 0..=3 {
        let x = f64::from(minute) / 3.0 * WIDTH;
        writeln!(
            svg,
            "<path stroke=\"#ddd\" d=\"M{x} 0v{HEIGHT}\"/>\n\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{minute} min</text>",
            HEIGHT + 20.0
        )?;
    }
    Ok(())
}

type Point = (f64, f64);

/// Each admitted request is a step up.
fn steps(admitted: &[Duration]) -> Vec<Point> {
    let x = |at: Duration| at.as_secs_f64() / END.as_secs_f64() * WIDTH;
    let y = |count: usize| HEIGHT - count as f64 / MOST * HEIGHT;
    let step = |(before, at): (usize, &Duration)| [(x(*at), y(before)), (x(*at), y(before + 1))];
    let mut steps: Vec<_> = admitted.iter().enumerate().flat_map(step).collect();
    steps.push((WIDTH, y(admitted.len())));
    steps
}

/// Drops points that lie on the line between their neighbours.
fn simplified(points: &[Point]) -> Vec<Point> {
    let (mut kept, mut between) = (Vec::<Point>::new(), Vec::<Point>::new());
    for to in points {
        match kept.last() {
            None => kept.push(*to),
            Some(from) if between.iter().all(|point| distance(*point, *from, *to) < 0.3) => {
                between.push(*to);
            }
            Some(_) => {
                kept.extend(between.last());
                between = vec![*to];
            }
        }
    }
    kept.extend(between.last());
    kept
}

/// The distance of a point from the line through two others.
fn distance((x, y): Point, (from_x, from_y): Point, (to_x, to_y): Point) -> f64 {
    let (dx, dy) = (to_x - from_x, to_y - from_y);
    let length = dx.hypot(dy);
    if length == 0.0 {
        return (x - from_x).hypot(y - from_y);
    }
    (dx * (y - from_y) - dy * (x - from_x)).abs() / length
}
