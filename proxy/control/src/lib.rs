//! The control thread: bootstrap, subscriptions, warming, secrets, what admin shows.
