//! `cargo xtask up`, `down`, `test` and `bench`: everything a machine with Rust and Node needs to run and to test
//! Roost, from nothing.
//!
//! Each command is a list of steps; each step prints one line. What a step needs it installs itself.

mod bench;
mod build;
mod packages;
mod postgres;
mod step;
mod test;
mod up;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  up [--detach] [--listen ADDRESS]   install what is missing, build, start Roost with a first computer
  down                               stop the computers and the server that `up` started
  test [--fast]                      run every test; --fast leaves out virtual machines and PostgreSQL
  deny                               check what the dependencies are and their licenses
  bench [OPTIONS]                    measure what SPECIFICATION.md promises; --help lists the options
  openapi                            write openapi.json from the routes";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["up", options @ ..] => up::Options::parse(options).and_then(|options| up::up(&options)),
        ["down"] => up::down(),
        ["test"] => test::test(test::Extent::Full),
        ["test", "--fast"] => test::test(test::Extent::Fast),
        ["bench", options @ ..] => bench::bench(options),
        ["deny"] => test::deny(),
        ["openapi"] => build::write_openapi(),
        _ => {
            step::say(USAGE);
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            step::say(&format!("\nFAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
