"""The way over from other trainers: their settings become FineTuneJobs, and what cannot be kept is named."""
