"""The commands of ``snc``, one file each."""
