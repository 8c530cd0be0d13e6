//! What the C library's allocator keeps of freed memory. It is most of what a small ipamd would have: a start reads the kernel's types
//! and the store's lists into tens of megabytes for a moment, and each thread has an arena of its own that keeps its share.

/// Arenas for all threads together: two threads run at one time, and what one of them frees another one can use.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Lets all threads share a few arenas. For the beginning of a process, before there are others.
pub fn share_arenas() {
    // SAFETY: sets a number; refused values change nothing.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives what is free back to the system. Takes some milliseconds at most, while others who allocate may wait.
pub(crate) fn give_back() {
    // SAFETY: touches nothing but free memory of the allocator's own, under its locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
