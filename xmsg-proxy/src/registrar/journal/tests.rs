//! Tests of journals and snapshots that are complete, cut short, damaged, of the first version, and behind
//! links.

use std::sync::atomic::Ordering;

use super::draft::CATCH_UP_MAX;
use super::format::*;
use super::*;

fn open(path: &Path) -> (Journal, Vec<Entry>, OpenReport) {
    let mut entries = Vec::new();
    let (journal, complaints) = Journal::open(path, |entry| entries.push(entry)).unwrap();
    (journal, entries, complaints)
}

fn frame(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn entries() -> [Entry; 3] {
    [
        Entry::Register(OwnerType::Publisher, frame("one")),
        Entry::Remove(OwnerType::Subscriber, frame("two")),
        Entry::RemoveHost(frame("")),
    ]
}

fn batch(entries: &[Entry]) -> Vec<u8> {
    let mut batch = Vec::new();
    for entry in entries {
        entry.write(&mut batch);
    }
    batch
}

fn snapshot() -> [(OwnerType, Vec<Bytes>); 2] {
    [
        (OwnerType::Publisher, vec![frame("null")]),
        (OwnerType::Subscriber, vec![frame("zero"), frame("naught")]),
    ]
}

/// Writes a snapshot with three registrations, and a journal with three changes.
fn filled(path: &Path) -> Vec<Entry> {
    let (mut journal, found, complaints) = open(path);
    assert!(found.is_empty() && complaints == OpenReport::default() && journal.wants_compaction());
    journal.compact(&snapshot(), &mut []).unwrap();
    assert!(!journal.wants_compaction());
    journal.append(&mut batch(&entries())).unwrap();
    all()
}

fn all() -> Vec<Entry> {
    let records = snapshot()
        .into_iter()
        .flat_map(|(owner, frames)| frames.into_iter().map(move |frame| Entry::Register(owner, frame)));
    records.chain(entries()).collect()
}

/// Writes the same content as [`filled`] in the format of the first version.
fn filled_by_the_first_version(path: &Path) -> Vec<Entry> {
    let all = all();
    let (records, changes) = all.split_at(3);
    for (path, magic, count, entries) in [
        (path.to_owned(), b"XMSGREG1", Some(3_u64), records),
        (with_suffix(path, ".journal"), b"XMSGJRN1", None, changes),
    ] {
        let mut file = [&magic[..], &7_u64.to_le_bytes()].concat();
        file.extend(count.into_iter().flat_map(u64::to_le_bytes));
        let mut batch = batch(entries);
        seal(&mut batch, &Salt(None));
        file.extend(batch);
        fs::write(path, file).unwrap();
    }
    all
}

fn clear(folder: &Path) {
    for old in fs::read_dir(folder).unwrap() {
        fs::remove_file(old.unwrap().path()).unwrap();
    }
}

#[test]
fn the_checksum_is_the_common_one() {
    assert_eq!(!crc32(!0, b"123456789"), 0xcbf4_3926);
    assert_eq!(Salt(None).checksum(b"123456789"), 0xcbf4_3926);
    assert_ne!(Salt(Some([1; 8])).checksum(b"123456789"), Salt(Some([2; 8])).checksum(b"123456789"));
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let all = filled(&path);
    let (mut journal, found, complaints) = open(&path);
    assert_eq!((found, complaints), (all, OpenReport::default()));
    assert!(Journal::open(&path, drop).unwrap_err().to_string().contains("another registrar"));
    journal.compact(&[(OwnerType::Publisher, vec![frame("new")])], &mut batch(&entries()[..1])).unwrap();
    drop(journal);
    let expected = [Entry::Register(OwnerType::Publisher, frame("new")), entries()[0].clone()];
    assert_eq!(open(&path).1, expected);
}

#[test]
fn files_of_the_first_version_are_read_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let all = filled_by_the_first_version(&path);
    let (mut journal, found, complaints) = open(&path);
    assert_eq!((found, complaints), (all.clone(), OpenReport::default()));
    // The old format could also be continued without a compaction.
    journal.append(&mut batch(&entries()[..1])).unwrap();
    drop(journal);
    let (mut journal, found, complaints) = open(&path);
    assert_eq!((found.len(), complaints), (7, OpenReport::default()));
    assert!(journal.wants_compaction() && !journal.is_broken());
    journal.compact(&snapshot(), &mut []).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"XMSGREG2"));
    assert!(fs::read(with_suffix(&path, ".journal")).unwrap().starts_with(b"XMSGJRN2"));
}

#[test]
fn a_journal_cut_short_anywhere_gives_what_is_whole_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let all = filled(&path);
    let whole = fs::read(with_suffix(&path, ".journal")).unwrap();
    let header = whole.len() - batch(&entries()).len();
    let ends: Vec<_> = (0..=3).map(|count| header + batch(&entries()[..count]).len()).collect();
    for len in header..=whole.len() {
        for behind in [&[][..], &[0; 100], &[PROBE; 100]] {
            // Zeros behind half an entry may look like the rest of it, which counts as damage. So they are
            // tested only at the end of an entry.
            let torn = !ends.contains(&len) || !behind.is_empty();
            if !ends.contains(&len) && !behind.is_empty() {
                continue;
            }
            fs::write(with_suffix(&path, ".journal"), [&whole[..len], behind].concat()).unwrap();
            let (mut journal, found, complaints) = open(&path);
            assert_eq!((complaints.damage.len(), complaints.torn.is_some()), (0, torn), "at {len}");
            assert_eq!(found, all[..found.len()]);
            journal.append(&mut batch(&entries()[..1])).unwrap();
            drop(journal);
            let (_, again, complaints) = open(&path);
            assert_eq!((again.len(), complaints), (found.len() + 1, OpenReport::default()));
            assert_eq!(again.last(), Some(&entries()[0]));
        }
    }
}

#[test]
fn one_damaged_byte_loses_one_entry_and_the_file_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    for fill in [filled, filled_by_the_first_version] {
        for file in ["r", "r.journal"] {
            for at in 0.. {
                clear(folder.path());
                let all = fill(&path);
                let damaged = folder.path().join(file);
                let mut bytes = fs::read(&damaged).unwrap();
                let Some(byte) = bytes.get_mut(at) else { break };
                *byte ^= 1;
                fs::write(&damaged, &bytes).unwrap();
                let (mut journal, found, complaints) = open(&path);
                assert!(found.iter().all(|entry| all.contains(entry)), "{file} {at}: {found:?}");
                assert!(found.len() >= all.len() - 1, "{file} {at}: {found:?}");
                // A damaged generation is still a valid number. Then the journal just doesn't belong to the
                // snapshot.
                if complaints == OpenReport::default() {
                    assert!((8..16).contains(&at) && found == all, "{file} {at}: {found:?}");
                    assert!(journal.is_broken());
                    continue;
                }
                // A last entry whose length is too great looks like the rest of an interrupted write.
                if let Some(torn) = complaints.torn {
                    assert!(torn.contains("cut short") && found.len() == all.len() - 1, "{torn}");
                    continue;
                }
                let text = &complaints.damage[0];
                assert!(text.contains("is damaged") && text.contains(".corrupt-1"), "{text}");
                assert_eq!(fs::read(with_suffix(&damaged, ".corrupt-1")).unwrap(), bytes);
                assert!(journal.is_broken() && journal.append(&mut []).is_err());
                journal.compact(&[], &mut []).unwrap();
                journal.append(&mut []).unwrap();
                drop(journal);
                assert_eq!(open(&path).2, OpenReport::default());
            }
        }
    }
}

#[test]
fn nobody_plants_an_entry_inside_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    filled(&path);
    let mut planted = batch(&[Entry::RemoveHost(frame("10.0.0.1"))]);
    seal(&mut planted, &Salt(None));
    let (mut journal, ..) = open(&path);
    let changes = [Entry::Register(OwnerType::Publisher, planted.into()), entries()[0].clone()];
    journal.append(&mut batch(&changes)).unwrap();
    drop(journal);
    let file = with_suffix(&path, ".journal");
    let mut bytes = fs::read(&file).unwrap();
    // Damages the length of the outer entry.
    let at = bytes.len() - batch(&changes).len();
    bytes[at + 2] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (_, found, complaints) = open(&path);
    assert_eq!((found.len(), complaints.damage.len()), (7, 1));
    assert_eq!(found.last(), Some(&changes[1]));
    assert!(!found.contains(&Entry::RemoveHost(frame("10.0.0.1"))));
}

#[test]
fn a_journal_older_than_the_snapshot_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    filled(&path);
    let old = fs::read(with_suffix(&path, ".journal")).unwrap();
    let (mut journal, ..) = open(&path);
    journal.compact(&[(OwnerType::Publisher, vec![frame("new")])], &mut []).unwrap();
    drop(journal);
    // The state in which a system stop between the two renames leaves the files.
    fs::write(with_suffix(&path, ".journal"), old).unwrap();
    let (mut journal, found, complaints) = open(&path);
    assert_eq!((found.len(), complaints, journal.is_broken()), (4, OpenReport::default(), true));
    assert!(journal.append(&mut []).is_err());
}

/// Returns a registration for each of these names.
fn records(names: &[&'static str]) -> [(OwnerType, Vec<Bytes>); 1] {
    [(OwnerType::Publisher, names.iter().map(|name| frame(name)).collect())]
}

/// Returns a function that yields the records, one owner type at a time.
fn each_of(records: [Records; 1]) -> impl FnMut() -> io::Result<Option<Records>> {
    let mut records = records.into_iter();
    move || Ok(records.next())
}

fn registers(names: &[&'static str]) -> Vec<Entry> {
    names.iter().map(|name| Entry::Register(OwnerType::Publisher, frame(name))).collect()
}

/// Returns a journal that continues while a draft is written, and the draft. The snapshot of the draft
/// contains `one` and `two`. The journal contains `two`, and three more changes.
fn drafted(path: &Path) -> (Journal, Draft) {
    let (mut journal, ..) = open(path);
    journal.compact(&records(&["one"]), &mut batch(&registers(&["two"]))).unwrap();
    let mut draft = journal.draft(journal.position());
    journal.append(&mut batch(&registers(&["three"]))).unwrap();
    draft.write(each_of(records(&["one", "two"]))).unwrap();
    journal.append(&mut batch(&registers(&["four"]))).unwrap();
    draft.copy(journal.position()).unwrap();
    journal.append(&mut batch(&registers(&["five"]))).unwrap();
    (journal, draft)
}

#[test]
fn changes_go_on_while_the_next_files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let (mut journal, draft) = drafted(&path);
    assert!(
        draft.is_caught_up(journal.position()) && !draft.is_caught_up(journal.position() + 2 * CATCH_UP_MAX)
    );
    let position = journal.position();
    journal.switch(draft, &mut batch(&registers(&["six"]))).unwrap();
    let six = batch(&registers(&["six"])).len() as u64;
    assert_eq!(journal.position(), position + six, "it counts on");
    assert!(!journal.is_broken() && !journal.wants_compaction());
    journal.append(&mut batch(&registers(&["seven"]))).unwrap();
    // A draft of the new files finds the entries of the new journal.
    let mut draft = journal.draft(position);
    draft.write(each_of(records(&["one", "two", "three", "four", "five"]))).unwrap();
    drop(journal);
    drop(draft);
    let files = || fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 3, "the snapshot, the journal and the lock: a draft leaves nothing behind");
    let all = registers(&["one", "two", "three", "four", "five", "six", "seven"]);
    let (mut journal, found, complaints) = open(&path);
    assert_eq!((&found, complaints), (&all, OpenReport::default()));
    let seven = batch(&registers(&["seven"])).len() as u64;
    let mut draft = journal.draft(journal.position() - seven);
    draft.write(each_of(records(&["all but the last"]))).unwrap();
    journal.switch(draft, &mut []).unwrap();
    drop(journal);
    assert_eq!(open(&path).1, registers(&["all but the last", "seven"]));
}

/// A crash happens while the next files are being written, or between the two renames.
#[test]
fn all_is_there_whenever_the_next_files_are_left_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let (journal, draft) = drafted(&path);
    let before = fs::read(&path).unwrap();
    // The temporary file as a crash leaves it.
    let unfinished = fs::read(temporary(&path)).unwrap();
    drop((journal, draft));
    fs::write(temporary(&path), unfinished).unwrap();
    let (journal, found, complaints) = open(&path);
    assert_eq!(
        (found, complaints),
        (registers(&["one", "two", "three", "four", "five"]), OpenReport::default())
    );
    drop(journal);
    // The new snapshot and the old journal have some changes in common, which are applied twice.
    fs::rename(temporary(&path), &path).unwrap();
    assert_ne!(fs::read(&path).unwrap(), before);
    let (mut journal, found, complaints) = open(&path);
    let expected = registers(&["one", "two", "two", "three", "four", "five"]);
    assert_eq!((found, complaints), (expected, OpenReport::default()));
    assert!(journal.is_broken(), "it belongs to another snapshot: nothing is appended to it");
    journal.compact(&records(&["all"]), &mut []).unwrap();
    drop(journal);
    assert_eq!(open(&path).1, registers(&["all"]));
}

#[test]
fn the_journal_goes_on_if_the_next_files_can_not_take_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let (mut journal, mut draft) = drafted(&path);
    draft.is_unwanted().store(true, Ordering::Relaxed);
    assert!(
        draft.write(each_of(records(&["one"]))).unwrap_err().with_causes().to_string().contains("given up")
    );
    drop(draft);
    // This position is behind the end of the journal.
    let mut draft = journal.draft(journal.position());
    draft.write(each_of(records(&["one"]))).unwrap();
    assert!(draft.copy(journal.position() + 1).is_err());
    drop(draft);
    // Copying does not give a valid checksum to a change that was damaged after it was written.
    let path_of_journal = with_suffix(&path, ".journal");
    let mut file = fs::read(&path_of_journal).unwrap();
    *file.last_mut().unwrap() ^= 1;
    fs::write(&path_of_journal, &file).unwrap();
    let last = batch(&registers(&["five"])).len() as u64;
    let mut draft = journal.draft(journal.position() - last);
    draft.write(each_of(records(&["one"]))).unwrap();
    let error = draft.copy(journal.position()).unwrap_err();
    assert!(error.with_causes().to_string().contains("damaged"), "{error:?}");
    drop(draft);
    *file.last_mut().unwrap() ^= 1;
    fs::write(&path_of_journal, &file).unwrap();
    // The journal does not end with a complete entry from this position.
    let mut draft = journal.draft(journal.position() - 1);
    draft.write(each_of(records(&["one"]))).unwrap();
    journal.switch(draft, &mut batch(&registers(&["six"]))).unwrap();
    drop(journal);
    assert_eq!(open(&path).1, registers(&["one", "two", "three", "four", "five", "six"]));
}

#[test]
fn other_names_of_the_same_file_meet_at_one_lock() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("real")).unwrap();
    symlink("real", at("folder")).unwrap();
    symlink("real/r", at("file")).unwrap();
    symlink(at("file"), at("file-of-a-file")).unwrap();
    symlink("loop", at("loop")).unwrap();
    // None of the files exists yet.
    let (mut journal, ..) = open(&at("file-of-a-file"));
    for other in ["real/r", "folder/r", "file", "folder/../real/r"] {
        let error = Journal::open(&at(other), drop).unwrap_err().to_string();
        assert!(error.contains("another registrar"), "{other}: {error}");
    }
    journal.compact(&snapshot(), &mut []).unwrap();
    drop(journal);
    assert!(fs::symlink_metadata(at("file")).unwrap().is_symlink(), "it still leads there");
    assert_eq!(open(&at("real/r")).1.len(), 3);
    assert!(Journal::open(&at("loop"), drop).is_err());
}

/// Whoever can write to the folder could otherwise have the registrar empty any file of its user.
#[test]
fn links_at_the_names_of_temporary_files_and_of_the_lock_are_not_followed() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let victim = at("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, at("r.tmp")).unwrap();
    symlink(&victim, at("r.journal.tmp")).unwrap();
    let (mut journal, ..) = open(&at("r"));
    journal.compact(&snapshot(), &mut []).unwrap();
    drop(journal);
    assert_eq!(open(&at("r")).1.len(), 3);
    assert!(fs::symlink_metadata(at("r")).unwrap().is_file());

    fs::remove_file(at("r.lock")).unwrap();
    symlink(&victim, at("r.lock")).unwrap();
    let error = Journal::open(&at("r"), drop).unwrap_err().with_causes().to_string();
    assert!(error.contains("r.lock") && error.contains("symbolic link"), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// `/dev/full` accepts no data, so nothing can be written through a link to it.
#[test]
fn what_could_not_be_written_is_cut_off_and_the_journal_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let all = filled(&path);
    let (mut journal, ..) = open(&path);
    let good = std::mem::replace(&mut journal.file, File::options().write(true).open("/dev/full").unwrap());
    let error = journal.append(&mut batch(&entries()[..1])).unwrap_err();
    assert!(error.with_causes().to_string().contains("No space left"), "{error:?}");
    assert!(journal.probe().is_err());
    journal.file = good;
    journal.broken = journal.cut().is_err();
    journal.probe().unwrap();
    journal.append(&mut batch(&entries()[..1])).unwrap();
    drop(journal);
    let (_, found, complaints) = open(&path);
    assert_eq!((found.len(), complaints), (all.len() + 1, OpenReport::default()));
}

#[test]
fn without_room_for_a_new_snapshot_the_journal_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r");
    let all = filled(&path);
    let (mut journal, ..) = open(&path);
    journal.compact_at = 0;
    assert!(journal.wants_compaction());
    // A directory with the name of the temporary file keeps the new files from being written.
    fs::create_dir(with_suffix(&path, ".tmp")).unwrap();
    journal.compact(&snapshot(), &mut batch(&entries()[..1])).unwrap();
    assert!(!journal.wants_compaction());
    drop(journal);
    assert_eq!(open(&path).1.len(), all.len() + 1);
}

/// Clients have filled entries with what looks like the beginning of long ones, and the salt of the file is
/// damaged.
#[test]
fn a_damaged_salt_takes_no_longer_to_get_over_whatever_clients_chose() {
    const ENTRIES: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let (mut journal, ..) = open(&path);
    journal.compact(&[], &mut []).unwrap();
    let traps = b"\x7f\x3f\x00\x00crc!\x01".repeat(450);
    let entry = Entry::Register(OwnerType::Publisher, traps.into());
    let all = vec![entry; ENTRIES];
    journal.append(&mut batch(&all)).unwrap();
    drop(journal);
    let file = with_suffix(&path, ".journal");
    let good = fs::read(&file).unwrap();
    let first_salt = JOURNAL.old_len();
    let mut bytes = good.clone();
    bytes[first_salt] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (_, found, complaints) = open(&path);
    assert_eq!((found == all, complaints.damage.len()), (true, 1), "{complaints:?}");

    let behind = Bytes::from(good).slice(first_salt + 16..);
    let contents = Contents::read(&behind, Salt(Some([7; 8])), drop);
    let most = IN_VAIN + IN_VAIN_OF_EACH * behind.len();
    assert!(contents.count == 0 && contents.in_vain <= most, "{} bytes", contents.in_vain);
    // Without the limit, it would be this many bytes.
    let each = 449 * 0x3f7f;
    assert!(contents.in_vain + each > most && ENTRIES * each > 10 * most);
}

/// One of many entries has a damaged length, and clients chose the content of all.
#[test]
fn a_damaged_length_among_what_clients_chose_loses_that_entry_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let (mut journal, ..) = open(&path);
    journal.compact(&[], &mut []).unwrap();
    let traps = b"\x7f\x7f\x03\x00crc!\x01".repeat(450);
    let all = vec![Entry::Register(OwnerType::Publisher, traps.into()); 10];
    journal.append(&mut batch(&all)).unwrap();
    drop(journal);
    let file = with_suffix(&path, ".journal");
    let mut bytes = fs::read(&file).unwrap();
    bytes[JOURNAL.old_len() + 16] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (_, found, complaints) = open(&path);
    assert_eq!((&found[..], complaints.damage.len()), (&all[1..], 1));
}
