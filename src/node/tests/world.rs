//! What the walks through tables of crashes begin with: a node with a log of its own making, whose databases have one page.

use shoaldb_vfs::files::DatabaseFiles;
use shoaldb_vfs::page::PageSize;
use shoaldb_vfs::transaction::{ChangedPage, Transaction};

use super::*;
use crate::entry::{self, Body, Origin, Payload};
use crate::types::Membership;

/// Page 1 of a database as entry `index` leaves it.
pub(super) fn page(index: u64) -> Vec<u8> {
    let mut page = Geometry::default().first_page();
    page[27] = index as u8;
    page
}

pub(super) fn hash(page: &[u8]) -> PageHash {
    PageHash::of(PageNo::FIRST, page)
}

pub(super) fn name(of: &str) -> DatabaseName {
    DatabaseName::new(of).unwrap()
}

pub(super) fn create(of: &str) -> Body {
    Body::CreateDatabase { name: name(of), page_size: PageSize::DEFAULT, auto_vacuum: AutoVacuum::None }
}

/// Entry `index` changes the page that entry `base` left.
pub(super) fn change(database: u64, base: u64, index: u64) -> Body {
    let image = page(index);
    let transaction = Transaction {
        base: Position(base),
        page_size: PageSize::DEFAULT,
        size_after: PageCount(1),
        checksum_after: hash(&image),
        pages: vec![ChangedPage { number: PageNo::FIRST, hash: hash(&image), image: image.into() }],
    };
    Body::Transaction { database: DatabaseId(database), transaction }
}

pub(super) fn entry_of(index: u64, body: Body) -> LogEntry {
    let origin = Origin { node: NodeId(2), session: 9, number: index };
    let id = EntryId { index: LogIndex(index), term: Term(1) };
    let data = entry::encode(&Payload { origin, body }).unwrap().into();
    LogEntry { id, class: EntryClass::Normal, data }
}

/// The disk of a node, and who the node is.
pub(super) struct World {
    pub(super) fs: SimFs,
    pub(super) env: Env,
    pub(super) directory: Directory,
    pub(super) identity: Identity,
}

impl World {
    /// All of its log is committed, and nothing behind its first entry is applied. The members as of that.
    pub(super) fn with_log(entries: Vec<LogEntry>) -> (World, Membership) {
        let fs = SimFs::new(1);
        let (env, directory, identity, opened) = founded_on(&fs);
        let membership = opened.restored.membership.clone();
        let commit = entries.last().unwrap().id.index;
        let hard_state = Some(HardState { term: Term(1), vote: None, commit });
        opened.log.append(&Batch { entries, hard_state, ..Batch::default() }).unwrap();
        drop(opened);
        (World { fs, env, directory, identity }, membership)
    }

    /// A start, before what is behind the anchor is applied: the entry of the anchor comes last.
    pub(super) fn begin(&self) -> (Hub, Engine, Arc<Log>, LogIndex) {
        let opened = self.directory.open_log(&self.identity).unwrap();
        let anchored = opened.applied().index;
        let (mailbox, _) = crossbeam_channel::unbounded();
        let hub = hub_of(&self.env, &self.identity, mailbox);
        let (engine, log) = begin(&hub, opened, &self.directory).unwrap();
        (hub, engine, log, anchored)
    }

    /// Names of the files of the databases.
    pub(super) fn files(&self) -> Vec<String> {
        self.env.fs.list(Path::new("/a/db"), "test").unwrap()
    }

    pub(super) fn has(&self, database: u64, generation: u64, end: &str) -> bool {
        self.files().contains(&format!("{database}-{generation}.{end}"))
    }
}

/// Says in the log that the main files have all entries up to this one.
pub(super) fn anchor(hub: &Hub, log: &Log, applied: u64, membership: Membership) {
    let catalogue = hub.catalogue.lock().clone().unwrap();
    let registry = registry::encode(&catalogue, &Default::default(), Default::default());
    let anchor = Anchor { applied: LogIndex(applied), membership, registry: hub.registry(&registry) };
    log.append(&Batch { anchor: Some(anchor), ..Batch::default() }).unwrap();
}

/// The files of a copy that came from elsewhere, as it was at an entry.
pub(super) fn copy_at(hub: &Hub, database: u64, index: u64) -> (Checkpointed, DatabaseFiles) {
    let page = page(index);
    let at = Checkpointed { position: Position(index), size: PageCount(1), checksum: hash(&page) };
    let mut staging = hub.databases.stage(DatabaseId(database), PageSize::DEFAULT, at).unwrap();
    if !staging.adopt(PageNo::FIRST, hash(&page)).unwrap() {
        staging.write(PageNo::FIRST, &page).unwrap();
    }
    (at, staging.finish(&mut |_, _| Ok(vec![hash(&page)])).unwrap())
}
