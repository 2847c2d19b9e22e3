// Files that the user chooses or drops, and files that the page hands out.

// Files in a folder below the chosen one get its name as a prefix, so that no two have the same name.
const flatName = (path) => path.split('/').filter(Boolean).join('_');

const isHidden = ({ file }) => file.name.startsWith('.');

export function filesOfInput(input) {
  const files = [...input.files].map((file) => ({ file, name: flatName(file.webkitRelativePath.split('/').slice(1).join('/')) || file.name }));
  // The same file can be chosen again.
  input.value = '';
  return files.filter((entry) => !isHidden(entry));
}

async function walk(entry, path) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: flatName(`${path}/${file.name}`) }];
  }
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // A reader hands out a folder in parts, and ends with an empty one.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    for (const child of entries) files.push(...(await walk(child, child.isDirectory ? `${path}/${child.name}` : path)));
  }
}

// Resolves to {files, name}; a folder has one name.
export async function filesOfDrop(transfer) {
  // The items are gone after the first await, so all entries are taken before.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const plain = [...transfer.files].map((file) => ({ file, name: file.name }));
  if (!entries.length) return { files: plain, name: plain[0]?.name };
  const files = [];
  for (const entry of entries) files.push(...(await walk(entry, '')));
  return { files: files.filter((entry) => !isHidden(entry)), name: entries[0].name };
}

export const folderOf = (files) => files[0].file.webkitRelativePath.split('/')[0];

export function download(name, blob) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
