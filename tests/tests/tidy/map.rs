//! Where things are: ARCHITECTURE.md and the tables of files in the heads of modules name every file, and no
//! file that is not there. So no rename makes them false.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{root, sources};

/// The folders whose files are in tables, each beginning with that of its `lib.rs` or `main.rs`.
const SOURCES: [&str; 7] = [
    "xmsg-core/zmtp/src",
    "xmsg-core/zmq/src",
    "xmsg-core/src",
    "xmsg-connect/src",
    "xmsg-proxy/src",
    "xmsg-cli/src",
    "tests/src",
];

/// The number of files beside the head of a folder from which on the head has a table of them.
const TABLE_FROM: usize = 5;

/// Returns the code spans of a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Returns whether this is the name of a source file.
fn is_source(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

/// Returns the cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split(" | ").map(str::trim).collect()
}

/// The table of files in the head of a module.
#[derive(Default)]
struct Table {
    /// The files that it is about.
    named: Vec<String>,
    /// Other files, to which it points the reader.
    mentioned: Vec<String>,
}

/// Returns the table in the head of a module, or `None` if there is none.
fn table(text: &str) -> Option<Table> {
    let head = text.lines().take_while(|line| line.is_empty() || line.starts_with("//"));
    let rows = head.map(|line| line.trim_start_matches(['/', '!']).trim());
    let mut rows = rows.skip_while(|row| *row != "| file | answers |").peekable();
    rows.peek()?;
    let mut table = Table::default();
    for row in rows.skip(2).take_while(|row| row.starts_with('|')) {
        let cells = cells(row);
        table.named.extend(spans(cells[0]).map(str::to_owned));
        let answers = cells[1..].iter().flat_map(|cell| spans(cell));
        table.mentioned.extend(answers.filter(|span| is_source(span)).map(str::to_owned));
    }
    Some(table)
}

/// Returns the folder whose files this file is the head of.
fn folder_of(head: &Path) -> PathBuf {
    let is_of_its_folder = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| head.ends_with(name));
    if is_of_its_folder { head.parent().unwrap().to_owned() } else { head.with_extension("") }
}

/// Returns whether a file, which is given by its path, has tests only.
fn is_of_tests(file: &Path) -> bool {
    file.ends_with("tests.rs") || file.to_str().unwrap().ends_with("_tests.rs")
}

/// Compares the tables in the heads of modules with the files, and returns what is wrong. Each file has to be
/// in the table of the nearest head above it that has one.
fn wrong_tables(texts: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let tables: BTreeMap<&PathBuf, Table> =
        texts.iter().filter_map(|(file, text)| Some((file, table(text)?))).collect();
    let mut there: BTreeMap<&PathBuf, BTreeSet<String>> =
        tables.keys().map(|head| (*head, BTreeSet::new())).collect();
    let mut wrong = Vec::new();
    for file in texts.keys() {
        let heads = tables.keys().filter(|head| **head != file && file.starts_with(folder_of(head)));
        let Some(head) = heads.max_by_key(|head| folder_of(head).components().count()) else {
            if !tables.contains_key(file) {
                wrong.push(format!("{} is in no table", file.display()));
            }
            continue;
        };
        let name = file.strip_prefix(folder_of(head)).unwrap().to_str().unwrap();
        // The head of a folder that has a table of its own stands for the folder.
        let folder = name.strip_suffix("mod.rs").filter(|_| tables.contains_key(file));
        there.get_mut(head).unwrap().insert(folder.unwrap_or(name).to_owned());
    }
    for (head, Table { named, mentioned }) in tables {
        let there = &there[head];
        let head = head.display();
        let mut seen = BTreeSet::new();
        for name in &named {
            if !there.contains(name) {
                wrong.push(format!("{head} names {name}, which is not there, or is in another table"));
            }
            if !seen.insert(name) {
                wrong.push(format!("{head} names {name} twice"));
            }
        }
        wrong.extend(
            there
                .iter()
                .filter(|name| !named.contains(name))
                .map(|name| format!("{head} does not name {name}")),
        );
        let lost = mentioned.iter().filter(|name| !texts.keys().any(|file| file.ends_with(name)));
        wrong.extend(lost.map(|name| format!("{head} points to {name}, which is not there")));
        let mut below: BTreeMap<&str, usize> = BTreeMap::new();
        for (folder, file) in there.iter().filter_map(|name| name.split_once('/')) {
            *below.entry(folder).or_default() += usize::from(!file.is_empty() && file != "mod.rs");
        }
        for (folder, files) in below.into_iter().filter(|(_, files)| *files >= TABLE_FROM) {
            wrong.push(format!("{folder} below {head} has {files} files, and no table of its own"));
        }
    }
    wrong
}

#[test]
fn the_head_of_a_folder_names_each_of_its_files() {
    let root = format!("{}/", root().display());
    let mut texts = BTreeMap::new();
    for (file, text) in SOURCES.iter().flat_map(|folder| sources(folder)) {
        let file = PathBuf::from(file.trim_start_matches(&root));
        if !is_of_tests(&file) {
            texts.insert(file, text);
        }
    }
    assert!(texts.len() > 300, "{} files", texts.len());
    let wrong = wrong_tables(&texts);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_table_that_is_wrong_is_found() {
    const OUTER: &str = "//! Doc.\n\n// | file | answers |\n// |---|---|\n// | `a.rs` | See `b/c.rs`. |\n// | `b/` | Who? |\n";
    const INNER: &str =
        "//! Doc.\n//!\n//! | file | answers |\n//! |---|---|\n//! | `c.rs`, `c/d.rs` | Who? |\n";
    const WHOLE: [(&str, &str); 5] =
        [("x/lib.rs", OUTER), ("x/a.rs", ""), ("x/b/mod.rs", INNER), ("x/b/c.rs", ""), ("x/b/c/d.rs", "")];
    let wrong = |files: &[(&str, &str)]| {
        wrong_tables(&files.iter().map(|(file, text)| (file.into(), (*text).to_owned())).collect())
    };
    assert_eq!(wrong(&WHOLE), Vec::<String>::new());

    let mut renamed = WHOLE;
    renamed[3].0 = "x/b/e.rs";
    let missing = "which is not there, or is in another table";
    let found = [
        format!("x/b/mod.rs names c.rs, {missing}"),
        "x/b/mod.rs does not name e.rs".to_owned(),
        "x/lib.rs points to b/c.rs, which is not there".to_owned(),
    ];
    assert_eq!(wrong(&renamed), found);

    let twice = INNER.replace("`c.rs`", "`c.rs`, `c.rs`");
    let mut named_twice = WHOLE;
    named_twice[2].1 = &twice;
    assert_eq!(wrong(&named_twice), ["x/b/mod.rs names c.rs twice"]);

    // Without its table, the folder is a part of the one above it.
    let mut without_table = WHOLE;
    without_table[2].1 = "";
    let found = ["b/c.rs", "b/c/d.rs", "b/mod.rs"].map(|file| format!("x/lib.rs does not name {file}"));
    assert_eq!(
        wrong(&without_table),
        [vec![format!("x/lib.rs names b/, {missing}")], found.to_vec()].concat()
    );
    assert_eq!(wrong(&WHOLE[1..2]), ["x/a.rs is in no table"]);

    let names: Vec<String> = (0..TABLE_FROM).map(|number| format!("b/{number}.rs")).collect();
    let outer = OUTER.replace("`b/c.rs`", "`b/0.rs`").replace("`b/`", &format!("`{}`", names.join("`, `")));
    let paths: Vec<String> = names.iter().map(|name| format!("x/{name}")).collect();
    let crowded: Vec<_> =
        paths.iter().map(|path| (&**path, "")).chain([("x/lib.rs", &*outer), WHOLE[1]]).collect();
    assert_eq!(wrong(&crowded), ["b below x/lib.rs has 5 files, and no table of its own"]);
}

/// Returns the rows of the table below this heading of a page.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1);
    let section = section.unwrap_or_else(|| panic!("there is no {heading:?}"));
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with('|')).skip(2).collect()
}

/// Returns the names in the code map that are not there, and all other names of files on the page that are
/// neither below the root nor below a folder of the code map.
fn wrong_names(page: &str, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut folders = Vec::new();
    for row in rows(page, "Code map") {
        let cells = cells(row);
        let those_of_row: Vec<&str> = spans(cells[0]).collect();
        assert!(!those_of_row.is_empty() && cells.len() == 3, "{row}");
        wrong.extend(
            those_of_row.iter().filter(|folder| !is_there(folder)).map(|folder| (*folder).to_owned()),
        );
        for name in spans(cells[2]) {
            if !those_of_row.iter().any(|folder| is_there(&format!("{folder}{name}"))) {
                wrong.push(format!("{name} below {}", those_of_row.join(" or ")));
            }
        }
        folders.extend(those_of_row);
    }
    let map = rows(page, "Code map");
    let rest = page.lines().map(|line| if map.contains(&line) { cells(line)[1] } else { line });
    for name in rest.flat_map(spans).filter(|span| is_source(span)) {
        if !is_there(name) && !folders.iter().any(|folder| is_there(&format!("{folder}{name}"))) {
            wrong.push(name.to_owned());
        }
    }
    wrong
}

#[test]
fn the_architecture_names_only_what_is_there() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let wrong = wrong_names(&page, |name| root().join(name).exists());
    assert!(wrong.is_empty(), "ARCHITECTURE.md names what is not there: {}", wrong.join(", "));
    let map = rows(&page, "Code map").join("\n");
    for folder in SOURCES {
        assert!(map.contains(&format!("| `{folder}/` |")), "the code map does not name {folder}/");
    }
}

#[test]
fn a_name_that_is_not_there_is_found() {
    let page = "# A\n\n## Code map\n\n| folder | what | start |\n|---|---|---|\n\
                | `a/` | see `d/e.rs` | `b.rs` |\n| `c/`, `d/` | that | `e.rs` |\n\n## Rest\n\nSee `f/g.rs`.\n";
    let there = ["a/", "a/b.rs", "c/", "d/", "d/e.rs", "c/f/g.rs"];
    assert_eq!(wrong_names(page, |name| there.contains(&name)), Vec::<String>::new());
    let renamed = ["a/", "a/B.rs", "c/", "c/e.rs"];
    let wrong = ["b.rs below a/", "d/", "d/e.rs", "f/g.rs"];
    assert_eq!(wrong_names(page, |name| renamed.contains(&name)), wrong);
}

/// Returns the names of the dependencies in a manifest that are not packages of this project.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut is_dependency = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_dependency = line.ends_with("dependencies]");
        } else if is_dependency && line.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            found.extend((!name.starts_with("xmsg-")).then(|| name.to_owned()));
        }
    }
    found
}

/// Whoever adds a dependency says why, and whoever removes one removes its reason.
#[test]
fn every_dependency_has_its_reason() {
    let packages = SOURCES.iter().map(|folder| folder.trim_end_matches("src"));
    let used: BTreeSet<String> = packages
        .chain(["", "fuzz/", "tests/bench/compare/"])
        .map(|folder| root().join(folder).join("Cargo.toml"))
        .flat_map(|manifest| dependencies(&std::fs::read_to_string(manifest).unwrap()))
        .collect();
    assert!(used.len() > 50, "{used:?}");
    let page = std::fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).map(cells).collect();
    for row in &rows {
        assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "there is no reason: {row:?}");
    }
    let named = rows.iter().flat_map(|row| spans(row[0])).map(str::to_owned).collect();
    assert_eq!(used, named, "docs/dependencies.md is to have a reason for each dependency, and for no other");
}

#[test]
fn dependencies_are_those_of_others() {
    let manifest = "[package]\nname = \"a\"\n\n[dependencies]\n# b = 1\nxmsg-zmq.workspace = true\nc.workspace = true\n\
                    \n[target.'cfg(unix)'.dev-dependencies]\nd-e = \"1\"\n\n[features]\nf = []\n";
    assert_eq!(dependencies(manifest), ["c", "d-e"].map(str::to_owned).into());
}
