//! Builds the template: `cargo run -p roost-image --example build -- TEMPLATES AGENT [--fresh]`.

use std::{env, error::Error, time::Instant};

use roost_image::{Packages, Templates};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let (root, agent, packages) = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [root, agent] => (root, agent, Packages::Cached),
        [root, agent, "--fresh"] => (root, agent, Packages::Fresh),
        _ => return Err("usage: build TEMPLATES AGENT [--fresh]".into()),
    };
    let start = Instant::now();
    let template = Templates::new(root.into())
        .build(agent.as_ref(), packages, &mut |progress| {
            let percent = progress.percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
            println!(
                "{:5.1} s  {}{percent}  {}",
                start.elapsed().as_secs_f64(),
                progress.phase.title(),
                progress.detail
            );
        })
        .map_err(|error| error.to_string())?;
    println!("{:5.1} s  {template:#?}", start.elapsed().as_secs_f64());
    Ok(())
}
