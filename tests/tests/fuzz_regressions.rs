//! Tests that run the fuzz targets on all stored inputs: the seeds, and inputs that once failed.

use std::path::Path;

#[allow(unreachable_pub, reason = "it is a crate of its own, too")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

fn inputs(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_is_kept_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, target) in fuzz::TARGETS {
        for kind in ["seeds", "regressions"] {
            for path in inputs(&root.join(kind).join(name)) {
                println!("{}", path.display());
                target(&std::fs::read(path).unwrap());
            }
        }
    }
}

/// The committed seeds are those that the current code makes. When a format changes, `cargo run --bin seeds`
/// in `fuzz` makes new ones.
#[test]
fn seeds_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (name, _) in fuzz::TARGETS {
        let seeds = fuzz::seeds::of(name);
        assert!(seeds.len() > 4, "{name} has seeds");
        for (seed, bytes) in seeds {
            let path = root.join(name).join(seed);
            let is_current = std::fs::read(&path).unwrap_or_default() == bytes;
            assert!(is_current, "{}: run `cargo run --bin seeds` in fuzz", path.display());
        }
    }
}

#[test]
fn every_target_is_built_and_listed() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (name, _) in fuzz::TARGETS {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name} is in fuzz/Cargo.toml"
        );
    }
    assert_eq!(manifest.matches("[[bin]]").count(), fuzz::TARGETS.len());
}
