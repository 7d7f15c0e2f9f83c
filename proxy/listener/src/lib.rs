//! Listeners: sockets, listener filters, filter-chain match, updates and drain.
