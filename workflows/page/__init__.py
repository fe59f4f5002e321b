"""The page that `stillroom serve` shows: schedules, runs, caches, students and reports, to look at."""
