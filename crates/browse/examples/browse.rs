//! Looks into a disk: `browse DISK ALLOWED list|read|tar PATH`. Says on standard error how long it took.

use std::{
    env,
    error::Error,
    io::{self, Write},
    time::Instant,
};

use camino::Utf8Path;
use roost_browse::{Filesystem, TarLimits};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [disk, allowed, what, path] = arguments.as_slice() else {
        return Err("usage: browse DISK ALLOWED list|read|tar PATH".into());
    };
    let begun = Instant::now();
    let filesystem = Filesystem::open(Utf8Path::new(disk), &[Utf8Path::new(allowed)])?;
    let opened = begun.elapsed();
    let mut output = io::stdout().lock();
    match what.as_str() {
        "list" => {
            for entry in filesystem.list(path)? {
                writeln!(output, "{:?} {:o} {} {:?}", entry.kind, entry.mode, entry.size, entry.path)?;
            }
        }
        "read" => {
            filesystem.read(path, 2 << 30, &mut output)?;
        }
        "tar" => {
            let limits = TarLimits { bytes: 1 << 30, entries: 50_000, directories: 5_000 };
            filesystem.tar(path, limits, &mut output)?;
        }
        _ => return Err("one of list, read and tar".into()),
    }
    eprintln!("opened after {opened:?}, done after {:?}", begun.elapsed());
    Ok(())
}
