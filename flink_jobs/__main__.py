"""`python -m flink_jobs`."""

from flink_jobs.cli import run

if __name__ == "__main__":
    run()
