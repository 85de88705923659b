//! [`Blocks`] as foyer's disk engine: what foyer hands over is written when it is waited for, and
//! read where it is asked for if the page cache has it.
//!
//! foyer's own engine keeps 85 bytes and more of every entry in memory, pads each to 4 KiB, and
//! reads with two changes of thread and a copy (docs/decisions/0013-blocks-of-our-own.md).

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use foyer::{
    Age, Device, DeviceBuilder, Engine, EngineBuildContext, EngineConfig, Error, ErrorKind,
    HybridCacheProperties, Load, NoopDeviceBuilder, PieceRef, Result, Spawner, StorageFilterResult,
};
use foyer_storage::Populated;

use super::blocks::{Blocks, Entry, Place, Read};
use super::body_bytes::BodyBytes;
use super::record::{Piece, PieceKey};
use crate::notices::{self, Notice};

type Pieces = Vec<PieceRef<PieceKey, Piece, HybridCacheProperties>>;
type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What foyer builds the engine from: the file is open already.
pub(super) struct BlocksConfig {
    pub blocks: Arc<Blocks>,
    pub held: Arc<BodyBytes>,
}

struct BlocksEngine {
    blocks: Arc<Blocks>,
    held: Arc<BodyBytes>,
    /// Handed over and not yet written: a batch, since [`super::disk`] waits after each.
    pending: Mutex<Pieces>,
    device: Arc<dyn Device>,
    spawner: Spawner,
}

impl fmt::Debug for BlocksConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlocksConfig({:?})", self.blocks)
    }
}

impl fmt::Debug for BlocksEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlocksEngine({:?})", self.blocks)
    }
}

impl EngineConfig<PieceKey, Piece, HybridCacheProperties> for BlocksConfig {
    fn build(
        self: Box<Self>,
        context: EngineBuildContext,
    ) -> Later<Result<Arc<dyn Engine<PieceKey, Piece, HybridCacheProperties>>>> {
        Box::pin(async move {
            let engine = BlocksEngine {
                blocks: self.blocks,
                held: self.held,
                pending: Mutex::default(),
                // foyer counts in it what was read and written.
                device: NoopDeviceBuilder::default().build()?,
                spawner: context.spawner,
            };
            Ok(Arc::new(engine) as Arc<dyn Engine<_, _, _>>)
        })
    }
}

impl From<BlocksConfig> for Box<dyn EngineConfig<PieceKey, Piece, HybridCacheProperties>> {
    fn from(config: BlocksConfig) -> Self {
        Box::new(config)
    }
}

impl Engine<PieceKey, Piece, HybridCacheProperties> for BlocksEngine {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn filter(&self, _hash: u64, _estimated_size: usize) -> StorageFilterResult {
        StorageFilterResult::Admit
    }

    fn enqueue(
        &self,
        piece: PieceRef<PieceKey, Piece, HybridCacheProperties>,
        _estimated_size: usize,
    ) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }

    fn load(&self, hash: u64) -> Later<Result<Load<PieceKey, Piece, HybridCacheProperties>>> {
        let (blocks, held) = (self.blocks.clone(), self.held.clone());
        let (spawner, device) = (self.spawner.clone(), self.device.clone());
        Box::pin(async move {
            let Some(place) = blocks.place(hash) else { return Ok(Load::Miss) };
            let mut read = blocks.read_cached(place).map_err(Error::io_error)?;
            if matches!(read, Read::NotCached) {
                let blocks = blocks.clone();
                let reading = spawner.spawn_blocking(move || blocks.read(place));
                read = reading.await?.map_err(Error::io_error)?;
            }
            device.statistics().record_disk_read(place.bytes());
            let populated = Populated { age: Age::Old };
            Ok(match entry(&blocks, &held, hash, place, read).map_err(Error::io_error)? {
                Some((key, value)) => Load::Entry { key, value, populated },
                None => Load::Miss,
            })
        })
    }

    fn delete(&self, hash: u64) {
        self.blocks.forget(hash);
    }

    fn may_contains(&self, hash: u64) -> bool {
        self.blocks.place(hash).is_some()
    }

    fn destroy(&self) -> Later<Result<()>> {
        Box::pin(async {
            Err(Error::new(ErrorKind::Unsupported, "destroying the store is not supported"))
        })
    }

    fn wait(&self) -> Later<()> {
        let pieces =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        let (blocks, device) = (self.blocks.clone(), self.device.clone());
        let writing = self.spawner.spawn_blocking(move || match write(&blocks, &pieces) {
            Ok(bytes) => device.statistics().record_disk_write(bytes as usize),
            Err(error) => {
                let notice = Notice::warning("a batch of stored pieces was not written", "", "");
                notices::note(&notice, format_args!("{error}; {} pieces", pieces.len()));
            }
        });
        Box::pin(async {
            // What was not written is not in the index, whyever.
            let _ = writing.await;
        })
    }

    fn close(&self) -> Later<Result<()>> {
        let writing = self.wait();
        Box::pin(async {
            writing.await;
            Ok(())
        })
    }
}

/// What a read found, if it is an entry. What is damaged is forgotten. It is no damage where the
/// block was written over while it was read.
pub(super) fn entry(
    blocks: &Blocks,
    held: &BodyBytes,
    hash: u64,
    place: Place,
    read: Read,
) -> io::Result<Option<(PieceKey, Piece)>> {
    match read {
        Read::Entry(key, value) => Ok(Some((key, held.count_piece(Piece::of_value(value))))),
        Read::Damaged if blocks.forget_at(hash, place) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "checksum mismatch in a stored entry"))
        }
        Read::Damaged | Read::NotCached => Ok(None),
    }
}

fn write(blocks: &Blocks, pieces: &Pieces) -> io::Result<u64> {
    let entry = |piece: &PieceRef<PieceKey, Piece, HybridCacheProperties>| {
        (piece.hash(), *piece.key(), piece.value().share())
    };
    let shared: Vec<_> = pieces.iter().map(entry).collect();
    let entries: Vec<_> =
        shared.iter().map(|(hash, key, piece)| Entry { hash: *hash, key, piece }).collect();
    blocks.write(&entries)
}
