//! What `identity.rs` promises: the old identity or the new one after every crash, and clear refusals.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{DirLock, Label, Scratch};

use super::*;
use crate::found::format::Promise;

/// One directory, with what is in it and what would be left after a crash.
#[derive(Clone, Default, Debug)]
struct State {
    live: BTreeMap<String, Arc<Mutex<Content>>>,
    durable: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Calls that still work.
    budget: Option<usize>,
}

#[derive(Default, Debug)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone, Default, Debug)]
struct Disk(Arc<Mutex<State>>);

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

impl Disk {
    fn call(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        match &mut state.budget {
            Some(0) => return Err(io::Error::other("crashed")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    /// What the next start finds: directory entries all durable, or all of them kept by luck.
    fn crash(&self, keep_names: bool) -> Disk {
        let state = self.0.lock().unwrap();
        let names = if keep_names { &state.live } else { &state.durable };
        let survive = |(name, content): (&String, &Arc<Mutex<Content>>)| {
            let bytes = content.lock().unwrap().durable.clone();
            (name.clone(), Arc::new(Mutex::new(Content { live: bytes.clone(), durable: bytes })))
        };
        let live: BTreeMap<_, _> = names.iter().map(survive).collect();
        Disk(Arc::new(Mutex::new(State { durable: live.clone(), live, budget: None })))
    }
}

#[derive(Debug)]
struct Handle(Disk, Arc<Mutex<Content>>);

impl File for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64, _: Label) -> io::Result<usize> {
        let _state = self.0.call()?;
        let content = self.1.lock().unwrap();
        let rest = content.live.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn write_at(&self, buf: &[u8], offset: u64, _: Label) -> io::Result<()> {
        let _state = self.0.call()?;
        let mut content = self.1.lock().unwrap();
        let end = offset as usize + buf.len();
        let len = content.live.len().max(end);
        content.live.resize(len, 0);
        content.live[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }
    fn sync_data(&self, _: Label) -> io::Result<()> {
        let _state = self.0.call()?;
        let mut content = self.1.lock().unwrap();
        content.durable = content.live.clone();
        Ok(())
    }
    fn sync_behind(&self, label: Label) -> io::Result<()> {
        self.sync_data(label)
    }
    fn settle(&self, _: Label) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64, _: Label) -> io::Result<()> {
        self.1.lock().unwrap().live.resize(len as usize, 0);
        Ok(())
    }
    fn len(&self, _: Label) -> io::Result<u64> {
        Ok(self.1.lock().unwrap().live.len() as u64)
    }
}

impl Fs for Disk {
    fn open(&self, path: &Path, how: Open, _: Label) -> io::Result<Arc<dyn File>> {
        let mut state = self.call()?;
        let name = name(path);
        let content = match (how, state.live.get(&name)) {
            (Open::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Open::CreateNew, None) => state.live.entry(name).or_default().clone(),
            (_, Some(content)) => content.clone(),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Handle(self.clone(), content)))
    }
    fn rename(&self, from: &Path, to: &Path, _: Label) -> io::Result<()> {
        let mut state = self.call()?;
        let content = state.live.remove(&name(from)).ok_or(io::ErrorKind::NotFound)?;
        state.live.insert(name(to), content);
        Ok(())
    }
    fn remove(&self, path: &Path, _: Label) -> io::Result<()> {
        self.call()?.live.remove(&name(path)).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn create_dir_all(&self, _: &Path, _: Label) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, _: &Path, _: Label) -> io::Result<Vec<String>> {
        Ok(self.call()?.live.keys().cloned().collect())
    }
    fn sync_dir(&self, _: &Path, _: Label) -> io::Result<()> {
        let mut state = self.call()?;
        state.durable = state.live.clone();
        Ok(())
    }
    fn lock_dir(&self, _: &Path, _: Label) -> io::Result<Box<dyn DirLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn scratch(&self, _: &Path, _: usize, _: Label) -> io::Result<Arc<dyn Scratch>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn identity(founder: u16) -> Identity {
    let promised = Some(Promise { founder: NodeId(founder), incarnation: Incarnation(7) });
    Identity { promised, ..Identity::new(NodeId(3), Incarnation(5)) }
}

#[test]
fn after_every_crash_there_is_the_old_identity_or_the_new_one() {
    let dir = Path::new("/data");
    let disk = Disk::default();
    store(&disk, dir, &identity(2)).unwrap();
    for left_over in [false, true] {
        for keep_names in [false, true] {
            for calls in 0.. {
                let disk = disk.crash(true);
                if left_over {
                    disk.open(&dir.join(NEW_FILE), Open::CreateNew, "test").unwrap();
                }
                disk.0.lock().unwrap().budget = Some(calls);
                let stored = store(&disk, dir, &identity(1));
                let after = disk.crash(keep_names);
                let found = load(&after, dir, NodeId(3)).unwrap().unwrap();
                if stored.is_ok() {
                    assert_eq!(found, identity(1), "durable when it returns");
                    assert_eq!(calls, 6, "six calls: remove, create, write, sync, rename, sync of the directory");
                    break;
                }
                assert!(found == identity(1) || found == identity(2), "{calls} calls");
                store(&after, dir, &identity(1)).unwrap();
            }
        }
    }
}

/// A process dies in a store, or its disk fails there; the next one goes by the identity that it finds, and then the power goes.
#[test]
fn an_identity_that_was_gone_by_is_still_there_after_a_power_cut() {
    let (dir, old, new) = (Path::new("/d"), identity(2), identity(3));
    for fails in [false, true] {
        let (mut old_ones, mut new_ones) = (0, 0);
        for (call, seed) in (1..=6).flat_map(|call| (0..20).map(move |seed| (call, seed))) {
            let fs = SimFs::new(seed);
            fs.create_dir_all(dir, "t").unwrap();
            store(&fs, dir, &old).unwrap();
            match fails {
                true => fs.fail_at(Aim::Any, call, Lasts::Once, Failure::EIO),
                false => fs.kill_at(Aim::Any, call),
            }
            assert!(store(&fs, dir, &new).is_err(), "call {call}");
            fs.restart();
            // A disk without room is no reason not to start.
            fs.fail_at(Aim::At("identity.create"), 1, Lasts::ForGood, Failure::ENOSPC);
            let found = load_or_create(&fs, dir, old.node, Incarnation(1)).unwrap();
            assert!(found == old || found == new);
            *(if found == new { &mut new_ones } else { &mut old_ones }) += 1;
            fs.crash(seed);
            fs.restart();
            assert_eq!(load(&fs, dir, old.node).unwrap(), Some(found), "call {call}, seed {seed}");
        }
        assert!(old_ones > 20 && new_ones >= 20, "{old_ones} {new_ones}");
    }
}

#[test]
fn a_new_directory_gets_an_identity_that_stays() {
    let (disk, dir) = (Disk::default(), Path::new("/data"));
    let first = load_or_create(&disk, dir, NodeId(3), Incarnation(5)).unwrap();
    let disk = disk.crash(false);
    let second = load_or_create(&disk, dir, NodeId(3), Incarnation(6)).unwrap();
    assert_eq!((first.incarnation, second), (Incarnation(5), Identity::new(NodeId(3), Incarnation(5))));
}

#[test]
fn another_nodes_directory_is_refused() {
    let (disk, dir) = (Disk::default(), Path::new("/data"));
    store(&disk, dir, &identity(2)).unwrap();
    let error = load_or_create(&disk, dir, NodeId(4), Incarnation(1)).unwrap_err().to_string();
    let parts = ["/data/identity", "of node 3, not of node 4", "start it with id 3 or give node 4 its own directory"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert_eq!(load(&disk, dir, NodeId(3)).unwrap(), Some(identity(2)), "nothing was changed");
}

#[test]
fn a_damaged_identity_is_never_replaced() {
    let (disk, dir) = (Disk::default(), Path::new("/data"));
    store(&disk, dir, &identity(2)).unwrap();
    let file = disk.open(&dir.join(FILE), Open::Write, "test").unwrap();
    file.write_at(&[0xff], 9, "test").unwrap();
    for _ in 0..2 {
        let error = load_or_create(&disk, dir, NodeId(3), Incarnation(1)).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
    }
    file.set_len(0, "test").unwrap();
    assert!(matches!(load(&disk, dir, NodeId(3)), Err(IdentityError::Damaged { .. })));
}
