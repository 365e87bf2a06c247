"""Bytes by name and range, from a disk, a bucket, the web or the hub; files written whole."""
