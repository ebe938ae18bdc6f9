"""Numbers for quality: meshes against a true shape, pictures against pictures, and the health of a mesh by itself."""
