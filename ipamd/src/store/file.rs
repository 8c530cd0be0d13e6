//! The redb file of the embedded store: making it, opening it, and refusing what is not understood.
//!
//! Invariants: the file appears whole (made beside, then linked to its name), so a crash while it is made leaves nothing
//! that looks damaged; a file that is not understood is never written to.

use super::{Revision, StoreError};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition};
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Name of the file inside the state directory.
pub const FILE_NAME: &str = "weft.redb";
/// What this build writes; a newer one is refused.
const SCHEMA: u64 = 1;
/// redb would take a gigabyte; the state of a node is a few hundred kilobytes.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// Key → revision, lease (0: none), value.
pub(super) const ENTRIES: TableDefinition<'static, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// `schema` and `revision`.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// Opens the database of a state directory, making both if they are missing, and reads its revision.
pub(super) fn open(state_dir: &Path) -> Result<(PathBuf, Database, Revision), StoreError> {
    let path = state_dir.join(FILE_NAME);
    let refused = |cause| failed("create", state_dir, cause);
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(refused)?;
    if !path.try_exists().map_err(|e| failed("open", &path, e))? {
        create(&path)?;
    }
    let database = builder().open(&path).map_err(|e| database_error(&path, e))?;
    let revision = check_schema(&database, &path)?;
    Ok((path, database, revision))
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes an empty database under another name and links it to its own. Who links second uses what the first one made.
fn create(path: &Path) -> Result<(), StoreError> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let made = (|| {
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temporary, e)),
            _ => {}
        }
        let database = builder().create(&temporary).map_err(|e| database_error(&temporary, e))?;
        let done = (|| {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.insert("schema", SCHEMA)?;
            transaction.open_table(ENTRIES)?;
            transaction.commit()?;
            Ok::<(), redb::Error>(())
        })();
        done.map_err(|e| redb_error("write", &temporary, e))?;
        drop(database);
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path, e)),
            _ => Ok(()),
        }
    })();
    // Either it has its own name now, or the first error is the one to report.
    let _ = fs::remove_file(&temporary);
    made?;
    // The name itself must be durable before anything is acknowledged.
    let parent = path.parent().unwrap_or(path);
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| failed("sync", parent, e))
}

/// The revision of a database that this build understands.
fn check_schema(database: &Database, path: &Path) -> Result<Revision, StoreError> {
    let read = (|| {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let number = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|v| v.value()));
        Ok::<_, redb::Error>((number("schema")?, number("revision")?))
    })();
    let corrupted = |cause: String| StoreError::Corrupted { path: path.to_owned(), cause };
    let (schema, revision) = read.map_err(|e| match e {
        redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. } => {
            corrupted("it is not a database of Weft".to_owned())
        }
        other => redb_error("read", path, other),
    })?;
    match schema {
        Some(SCHEMA) => Ok(revision.unwrap_or(0)),
        Some(found) if found > SCHEMA => {
            Err(StoreError::NewerSchema { path: path.to_owned(), found, known: SCHEMA })
        }
        found => Err(corrupted(format!("it has schema {found:?}"))),
    }
}

fn failed(action: &'static str, path: &Path, cause: io::Error) -> StoreError {
    StoreError::Failed { action, place: path.display().to_string(), cause }
}

/// Whether the file is at fault, not the file system: it is no database, or it ends too early.
fn is_damage(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn database_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(e)) if !is_damage(&e) => failed("open", path, e),
        other => StoreError::Corrupted { path: path.to_owned(), cause: other.to_string() },
    }
}

pub(super) fn redb_error(action: &'static str, path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(e) if !is_damage(&e) => failed(action, path, e),
        redb::Error::Io(e) => StoreError::Corrupted { path: path.to_owned(), cause: e.to_string() },
        redb::Error::Corrupted(cause) => StoreError::Corrupted { path: path.to_owned(), cause },
        other => failed(action, path, io::Error::other(other)),
    }
}
