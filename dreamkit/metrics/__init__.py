"""Numbers for quality: meshes against a true shape, pictures, and the health of a mesh by itself."""
