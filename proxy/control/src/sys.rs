//! The system call that no safe crate offers here: madvise(2). Everything `unsafe` of this crate is in this file.
#![allow(unsafe_code)]

use crate::pages::Clean;

/// Unmaps the pages of `mapping` until they are touched again; false if the kernel refuses.
pub(crate) fn release(mapping: Clean) -> bool {
    let start = std::ptr::without_provenance_mut::<libc::c_void>(mapping.start);
    // SAFETY: a `Clean` mapping is private, not writable, and every page of it is as in the file of the running executable, which
    // stays mapped for the life of the process. MADV_DONTNEED there changes no byte that anyone can read: the next access,
    // of whichever thread, maps the same page of the file again. A range that is not mapped is refused by the kernel.
    unsafe { libc::madvise(start, mapping.end.saturating_sub(mapping.start), libc::MADV_DONTNEED) == 0 }
}
